"""Losses beside torch's cross-entropy, timm's binary cross-entropy and their formulas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.loss
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.config.build import build
from imgcls.data.batch import Batch
from imgcls.errors import UserError
from imgcls.runs.checkpoints import load_content
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.losses import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    CrossEntropyLoss,
    FocalLoss,
    LabelCrossEntropy,
    LogitAdjustedLoss,
)


def batch(seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns logits, classes, shares and class weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(16, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (16,), generator=generator)
    shares = torch.rand(16, classes, generator=generator, dtype=torch.float64)
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1
    return logits, targets, shares / shares.sum(1, keepdim=True), weight


@pytest.mark.parametrize(
    ("soft", "smoothing", "weighted"),
    [
        (False, 0.0, False), (False, 0.1, False), (False, 0.0, True), (True, 0.0, False), (True, 0.1, False),
        pytest.param(False, 0.1, True, ), pytest.param(True, 0.0, True, ),
        pytest.param(True, 0.1, True, ),
    ],
)  # fmt: skip
def test_without_gamma_it_is_cross_entropy(soft: bool, smoothing: float, weighted: bool) -> None:
    logits, classes, shares, weight = batch()
    targets, given = shares if soft else classes, weight if weighted else None
    expected = F.cross_entropy(logits, targets, given, label_smoothing=smoothing)
    torch.testing.assert_close(FocalLoss(0.0, smoothing, given)(logits, targets), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_formula(gamma: float) -> None:
    logits, targets, _, _ = batch()
    probability = logits.softmax(1)[torch.arange(16), targets]  # equation 4 of the paper
    expected = (-((1 - probability) ** gamma) * probability.log()).mean()
    torch.testing.assert_close(FocalLoss(gamma)(logits, targets), expected)


def test_formula_with_class_weights() -> None:
    logits, targets, _, weight = batch()
    probability, alpha = logits.softmax(1)[torch.arange(16), targets], weight[targets]  # equation 5
    expected = (-alpha * (1 - probability) ** 2 * probability.log()).sum() / alpha.sum()
    torch.testing.assert_close(FocalLoss(2.0, weight=weight)(logits, targets), expected)


def test_classes_as_shares_are_the_same() -> None:
    logits, targets, _, _ = batch()
    loss = FocalLoss(2.0, 0.1)
    torch.testing.assert_close(loss(logits, F.one_hot(targets, 5).double()), loss(logits, targets))


def test_equal_class_weights_change_nothing() -> None:
    logits, targets, _, _ = batch()
    loss = FocalLoss(2.0, 0.1, torch.full((5,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(loss(logits, targets), FocalLoss(2.0, 0.1)(logits, targets))


def test_easy_samples_count_less() -> None:
    easy, hard = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    target = torch.tensor([0])
    shares = [FocalLoss(gamma)(easy, target) / FocalLoss(gamma)(hard, target) for gamma in (0.0, 2.0)]
    assert shares[1] < shares[0] / 100


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_sure_logits_have_finite_gradients(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = FocalLoss(gamma)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_weights_move_with_the_module() -> None:
    loss = FocalLoss(weight=torch.ones(3)).to(torch.float64)
    assert loss.weight is not None
    assert loss.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "options", [{}, {"sum_classes": True}, {"target_threshold": 0.2}, {"smoothing": 0.0}]
)
def test_binary_as_timm(options: dict[str, Any]) -> None:
    logits, targets, _, weight = batch()
    ours = {("label_smoothing" if key == "smoothing" else key): value for key, value in options.items()}
    expected = timm.loss.BinaryCrossEntropy(weight=weight, **options)(logits, targets)
    torch.testing.assert_close(BinaryCrossEntropy(weight=weight, **ours)(logits, targets), expected)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(0.1), FocalLoss(2.0, 0.1), CrossEntropyLoss(0.1)])
def test_smoothing_is_the_same_for_classes_and_for_shares(loss: nn.Module) -> None:
    logits, targets, _, _ = batch()
    torch.testing.assert_close(loss(logits, F.one_hot(targets, 5).double()), loss(logits, targets))


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BinaryCrossEntropy", "FocalLoss"])
@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5])
def test_bound_of_smoothing(name: str, smoothing: float) -> None:
    node = {"_target_": f"imgcls.tasks.losses.{name}", "label_smoothing": smoothing}
    with pytest.raises(UserError, match=r"loss\.label_smoothing="):
        build(node, "loss")


def test_bound_of_gamma() -> None:
    with pytest.raises(UserError, match=r"loss\.gamma=-1"):
        build({"_target_": "imgcls.tasks.losses.FocalLoss", "gamma": -1}, "loss")


# Several labels


def several() -> tuple[Tensor, Tensor]:
    """Returns logits, some of them extreme, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(16, 5, generator=generator)
    logits[0] = torch.tensor([200.0, -200.0, 40.0, -40.0, 0.0])
    return logits, torch.randint(2, (16, 5), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_by_hand(smoothing: float) -> None:
    logits, labels = several()
    logits, weight = logits[1:], [0.5, 1.0, 2.0, 3.0, 4.0]
    shares, probability = labels[1:] * (1 - smoothing) + smoothing / 2, logits.sigmoid()
    costs = torch.tensor(weight) * shares * probability.log() + (1 - shares) * (1 - probability).log()
    found = LabelCrossEntropy(weight, smoothing)(logits, labels[1:])
    torch.testing.assert_close(found, -costs.mean())
    plain = F.binary_cross_entropy_with_logits(logits, labels[1:].float())
    torch.testing.assert_close(LabelCrossEntropy()(logits, labels[1:]), plain)


@pytest.mark.parametrize(
    ("negative", "positive", "clip"), [(4.0, 1.0, 0.05), (2.0, 0.0, 0.0), (1.0, 0.5, 0.2)]
)
def test_asymmetric_by_hand(negative: float, positive: float, clip: float) -> None:
    """The paper's equations 1, 4 and 5, sample by sample; gradients with the powers as constants."""
    logits, labels = several()
    logits = logits[1:].requires_grad_()
    total = torch.zeros(())
    for logit, label in zip(logits.flatten(), labels[1:].flatten(), strict=True):
        p = torch.sigmoid(logit)
        shifted = torch.clamp(p - clip, min=0)
        if label:
            total = total - (1 - p).detach() ** positive * torch.log(p)
        else:
            total = total - shifted.detach() ** negative * torch.log(1 - shifted)
    expected = total / logits.numel()
    loss = AsymmetricLoss(negative, positive, clip)(logits, labels[1:])
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_asymmetric_without_powers_is_binary_cross_entropy() -> None:
    logits, labels = several()
    for smoothing in (0.0, 0.1):
        expected = LabelCrossEntropy(None, smoothing)(logits, labels)
        torch.testing.assert_close(AsymmetricLoss(0, 0, 0, smoothing)(logits, labels), expected)


@pytest.mark.parametrize("loss", [LabelCrossEntropy([3.0] * 5, 0.1), AsymmetricLoss()])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_labels_in_half_precision(loss: nn.Module, half: torch.dtype) -> None:
    """Logits in half precision, of up to 200, give the loss of the same logits in single precision."""
    logits, labels = several()
    logits = logits.to(half).requires_grad_()
    found = loss(logits, labels)
    torch.testing.assert_close(found, loss(logits.detach().float(), labels))
    found.backward()
    assert found.dtype == torch.float32 and logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [LabelCrossEntropy(label_smoothing=0.1), AsymmetricLoss()])
def test_classes_are_one_label_each(loss: nn.Module) -> None:
    logits, classes, _, _ = batch()
    torch.testing.assert_close(loss(logits, classes), loss(logits, F.one_hot(classes, 5)))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("LabelCrossEntropy", {"pos_weight": [1.0, 0.0]}, r"loss\.pos_weight=\[1\.0, 0\.0\]: "),
        ("LabelCrossEntropy", {"pos_weight": "equal"}, r"loss\.pos_weight=equal: "),
        ("LabelCrossEntropy", {"pos_weight": "balanced"}, "is for task=multilabel"),
        ("AsymmetricLoss", {"gamma_neg": -1}, r"loss\.gamma_neg=-1"),
        ("AsymmetricLoss", {"clip": 1}, r"loss\.clip=1"),
    ],
)
def test_bounds_of_losses_of_labels(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build({"_target_": f"imgcls.tasks.losses.{name}", **given}, "loss")


def test_logit_adjusted_by_hand() -> None:
    """Equation 10 of Menon et al. 2021: with logits of 0 a class has its share of the training images."""
    loss = LogitAdjustedLoss([90, 10])
    zeros = torch.zeros(1, 2)
    for label, share in ((0, 0.9), (1, 0.1)):
        assert loss(zeros, torch.tensor([label])).exp().item() == pytest.approx(1 / share)
    assert LogitAdjustedLoss([90, 10], tau=0.5)(zeros, torch.tensor([1])).exp().item() == pytest.approx(4.0)
    logits, targets, shares, weight = batch()
    for given in (targets, shares):
        expected = F.cross_entropy(logits, given, weight, label_smoothing=0.1)
        none = LogitAdjustedLoss([7, 4, 9, 2, 5], 0.0, 0.1, weight)
        torch.testing.assert_close(none(logits, given), expected)
        alike = LogitAdjustedLoss([3] * 5)(logits, given)
        torch.testing.assert_close(alike, F.cross_entropy(logits, given))


def test_logit_adjusted_by_config(here: Callable[..., None], said: Callable[..., str]) -> None:
    """The shares come from the training images; the validation loss is that of the logits as they are."""
    tiny = ["backbone.width=4", "trainer=cpu", "logger=csv", "debug=fast", "loss=logit_adjusted"]
    here("train", *tiny, "loss.tau=2", "hydra.run.dir=run")
    checkpoint = load_content(Path("run/checkpoints/last.ckpt"))
    counts = torch.tensor(checkpoint["hyper_parameters"]["class_counts"])
    expected = 2 * (counts / counts.sum()).log()
    torch.testing.assert_close(checkpoint["state_dict"]["loss.shift"], expected)
    task = ImageClassifier.load_from_checkpoint("run/checkpoints/last.ckpt")
    images, targets = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8), torch.arange(9)
    samples = Batch(images, targets, targets, targets >= 0)
    torch.testing.assert_close(task.compute(samples, "val").loss, F.cross_entropy(task(images), targets))
    assert "LogitAdjustedLoss is for one class an image" in said("train", *tiny, "task=multilabel")
    assert "loss.tau=-1" in said("train", *tiny, "loss.tau=-1")
