"""Losses beside torch's cross-entropy, timm's binary cross-entropy and their formulas."""

from typing import Any

import pytest
import timm.loss
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.config.build import build
from imgcls.errors import UserError
from imgcls.tasks.losses import BinaryCrossEntropy, CrossEntropyLoss, FocalLoss


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
