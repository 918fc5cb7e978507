"""ImageClassifier in training: what a checkpoint holds, chance, steps, clipping, averages and padding."""

import copy
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.callbacks.ema import EMA
from imgcls.data.batch import Batch
from imgcls.data.digits import Digits
from imgcls.engine.build import prepare
from imgcls.engine.checkpoint import SaveConfig
from imgcls.errors import UserError
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.metrics import Outputs
from imgcls.tasks.task import Task, load_checkpoint

CNN = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
LOSS = {"_target_": "torch.nn.CrossEntropyLoss"}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
CONSTANT = {"_target_": "imgcls.optim.constant"}
COSINE = {"_target_": "imgcls.optim.cosine", "warmup_epochs": 0.5}
AUGMENT = {"crop": "padded", "erase": 0.3, "mixup": {"alpha": 0.8, "probability": 0.5}}


@pytest.fixture(autouse=True)
def seeded() -> None:
    prepare(0)


def digits(seed: int = 0, **options: Any) -> Digits:
    data = Digits(**({"batch_size": 128, "seed": seed} | options))
    data.setup()
    return data


def classifier(data: Digits | None = None, **options: Any) -> ImageClassifier:
    given: dict[str, Any] = {"backbone": CNN, "loss": LOSS, "optimizer": SGD, "scheduler": CONSTANT} | options
    return ImageClassifier(spec=asdict((data or Digits()).spec), **given)


def trainer(**settings: Any) -> Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    common: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return Trainer(**({**quiet, **common, "max_epochs": 1} | settings))


def weights(module: Task) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.network.parameters()])


def images(count: int = 4, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8)


def assert_plain(value: Any) -> None:
    assert type(value) in (dict, list, tuple, str, int, float, bool, type(None)), type(value)
    for part in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    ):
        assert_plain(part)


def test_checkpoint_is_plain_and_enough(tmp_path: Path) -> None:
    data = digits()
    module = classifier(data, scheduler=COSINE, augment=AUGMENT, class_weights=[1.0] * 10, seed=3)
    callbacks: list[Callback] = [SaveConfig({"seed": 3, "run_dir": str(tmp_path)})]
    run = trainer(limit_train_batches=3, limit_val_batches=1, callbacks=callbacks)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert_plain(dict(content["hyper_parameters"]))
    assert content["hyper_parameters"]["seed"] == 3
    batch = images()
    expected = module.eval()(batch)
    loaded, config = load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded(batch), expected)
    assert config["seed"] == 3 and config["run_dir"] == str(tmp_path)


def test_a_checkpoint_loads_by_itself(tmp_path: Path) -> None:
    data = digits()
    module = classifier(data)
    run = trainer(limit_train_batches=1, limit_val_batches=0)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    batch = images()
    again = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert torch.equal(again(batch), module.eval()(batch))


def test_where_first_weights_came_from_is_not_kept(tmp_path: Path) -> None:
    backbone = {"_target_": "imgcls.backbones.torchvision.torchvision_network", "name": "resnet18"}
    with torch.device("meta"):
        module = classifier(backbone=backbone | {"pretrained": False, "weights": None})
    assert module.hparams["backbone"] == backbone
    torch.save(classifier().network.state_dict(), tmp_path / "w.pth")
    given = CNN | {"weights": str(tmp_path / "w.pth")}
    module = classifier(backbone=given)
    assert module.hparams["backbone"] == CNN
    assert given["weights"] == str(tmp_path / "w.pth")


def test_normalise() -> None:
    names, mean, std = ["a", "b"], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    spec = {"class_names": names, "channels": 3, "image_size": 8, "mean": mean, "std": std}
    module = ImageClassifier(spec, CNN, LOSS)
    batch = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    before, columns = batch.clone(), (1, 3, 1, 1)
    expected = (batch / 255 - torch.tensor(mean).view(columns)) / torch.tensor(std).view(columns)
    out = module.normalise(batch)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, before)
    for height, width in ((16, 16), (5, 12), (8, 9)):
        batch = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        expected = F.interpolate(batch / 255, (8, 8), mode="bilinear", antialias=True)
        expected = (expected - torch.tensor(mean).view(columns)) / torch.tensor(std).view(columns)
        torch.testing.assert_close(module.normalise(batch), expected, rtol=1e-4, atol=1e-5)


def test_training_step_is_the_loss() -> None:
    weight = [1.0 + i for i in range(10)]
    module = classifier(class_weights=weight).train()
    batch = Batch(images(12), torch.arange(12) % 10, torch.arange(12), torch.ones(12).bool())
    loss = module.training_step(batch, 0)
    logits = module.network(module.normalise(batch.images))
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.targets, torch.tensor(weight)))
    found = module.train_metrics.compute_and_reset()
    assert found["loss"] == pytest.approx(loss.item())
    assert found["top1"] == pytest.approx((logits.argmax(1) == batch.targets).float().mean().item())


def trained(seed: int, disturb: bool = False) -> dict[str, Tensor]:
    prepare(0)
    data = digits(seed)
    module = classifier(data, augment=AUGMENT, backbone=CNN | {"dropout": 0.2}, seed=seed)
    torch.manual_seed(99 if disturb else 0)
    trainer(max_epochs=2, limit_train_batches=3, limit_val_batches=0 if disturb else 1).fit(
        module, datamodule=data
    )
    return module.network.state_dict()


def test_training_is_a_function_of_the_seed() -> None:
    first, second, other = trained(0), trained(0, disturb=True), trained(1)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(algorithm: str, fused: bool, precision: str) -> None:
    moved = []
    for value in (1e-3, None, 0.0):
        prepare(0)
        data = digits()
        module = classifier(data, optimizer={"_target_": "torch.optim.SGD", "lr": 1.0}, fused=fused)
        before = weights(module)
        run = trainer(
            max_steps=1, limit_val_batches=0, precision=precision, gradient_clip_val=value,
            gradient_clip_algorithm=algorithm,
        )  # fmt: skip
        run.fit(module, datamodule=data)
        assert bool(run.optimizers[0].defaults["fused"]) == fused
        change = weights(module) - before
        moved.append(float(change.norm() if algorithm == "norm" else change.abs().max()))
    assert moved[0] == pytest.approx(1e-3, rel=0.01)
    assert moved[1] > 0.01
    assert moved[2] == pytest.approx(moved[1])


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"accumulate_grad_batches": 3}, {"limit_train_batches": 5},
        {"limit_train_batches": 5, "max_epochs": 3}, {"limit_train_batches": 0.55},
        {"limit_train_batches": 0.75, "accumulate_grad_batches": 4}, {"limit_train_batches": 1},
        {"limit_train_batches": 1.0}, {"limit_train_batches": 50}, {"max_steps": 7},
        {"max_steps": 7, "accumulate_grad_batches": 2}, {"max_steps": 7, "max_epochs": -1},
    ],
)  # fmt: skip
def test_steps_are_those_of_the_schedule(settings: dict[str, Any]) -> None:
    data = digits()
    module = classifier(data, scheduler=COSINE | {"warmup_epochs": 0.0})
    run = trainer(**{"max_epochs": 2, "limit_val_batches": 0} | settings)
    run.fit(module, datamodule=data)
    assert module.steps(run, data).total == run.global_step
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_steps_without_end() -> None:
    data = digits()
    module, run = classifier(data), trainer(max_epochs=-1)
    module._trainer = run
    run.datamodule = data  # type: ignore[attr-defined]
    assert module.steps(run, data).total is None
    assert module.steps(run, data).per_epoch == len(data.train_dataloader())


def test_errors() -> None:
    for wrong in ([1.0, 2.0, 3.0], [0.0] * 10, [1.0] * 9 + [-1.0]):
        with pytest.raises(UserError, match=r"task.class_weights=.*: expected 10 numbers of 0 or more"):
            classifier(class_weights=wrong)
    module = classifier(optimizer=None)
    with pytest.raises(UserError, match="it can only be evaluated"):
        trainer().fit(module, datamodule=digits())
    with pytest.raises(UserError, match=r"augment\.flip=2"):
        classifier(augment={"flip": 2})


def test_compiled_networks_have_the_same_names() -> None:
    module = classifier(compile=True)
    assert module.network._compiled_call_impl is not None
    assert module.state_dict().keys() == classifier().state_dict().keys()
    assert not any("_orig_mod" in name for name in module.state_dict())


def test_evaluation_is_over_all_images() -> None:
    data = digits(batch_size=100)
    module = classifier(data)
    (found,) = trainer().test(module, datamodule=data, verbose=False)
    held = data.sets["test"].__getitems__(range(359))
    assert len(data.sets["test"]) == 359
    logits = module.eval()(held.images)
    assert found["test/top1"] == pytest.approx((logits.argmax(1) == held.targets).float().mean().item())
    assert found["test/loss"] == pytest.approx(F.cross_entropy(logits, held.targets).item(), rel=1e-5)
    predictions = module.tested
    assert torch.equal(predictions["predictions"], logits.argmax(1))
    assert torch.equal(predictions["targets"], held.targets)


@pytest.mark.parametrize(
    "loss",
    [
        LOSS | {"label_smoothing": 0.2},
        {"_target_": "imgcls.tasks.losses.FocalLoss"},
        {"_target_": "imgcls.tasks.losses.BinaryCrossEntropy"},
    ],
)
def test_evaluation_measures_the_likelihood_whatever_the_training_loss_is(loss: dict[str, Any]) -> None:
    data = digits(batch_size=100)
    module = classifier(data, loss=loss, class_weights=[1.0 + i for i in range(10)])
    (validated,) = trainer().validate(module, datamodule=data, verbose=False)
    (tested,) = trainer().test(module, datamodule=data, verbose=False)
    for found, split in ((validated["val/loss"], "val"), (tested["test/loss"], "test")):
        held = data.sets[split].__getitems__(range(len(data.sets[split])))
        assert found == pytest.approx(
            F.cross_entropy(module.eval()(held.images), held.targets).item(), rel=1e-5
        )


@pytest.mark.parametrize(
    ("batches", "every", "settings", "skipped"),
    [
        (1, 4, {}, []), (3, 4, {}, []), (6, 4, {}, []), (6, 4, {}, [[0, 5]]),
        (4, 4, {}, [[0, 1], [0, 2]]), (4, 2, {}, [[0, 0], [0, 1]]), (6, 4, {"gradient_clip_val": 1e-2}, []),
        (6, 4, {"max_steps": 2}, []), (6, 4, {"precision": "bf16-mixed"}, []),
    ],
)  # fmt: skip
def test_a_step_is_of_the_mean_of_its_batches(
    batches: int, every: int, settings: dict[str, Any], skipped: list[list[int]]
) -> None:
    """Beside steps by hand on all batches of each group at once; also where an epoch ends within a group."""
    data, plain = digits(batch_size=32), {"_target_": "torch.optim.SGD", "lr": 0.1}
    backbone = {
        "_target_": "imgcls.backbones.timm.timm_network",
        "name": "vit_tiny_patch16_224",
        "depth": 1,
        "patch_size": 4,
    }
    module = classifier(
        data, optimizer=plain, backbone=backbone
    )  # no batch norm, which would tell batches apart
    module.skipped = skipped
    expected = copy.deepcopy(module.network)
    run = trainer(limit_train_batches=batches, accumulate_grad_batches=every, limit_val_batches=0, **settings)
    run.fit(module, datamodule=data)

    loader, optimizer = data.train_dataloader(), torch.optim.SGD(expected.parameters(), lr=0.1)
    given = [batch for _, batch in zip(range(batches), loader, strict=False)]
    for first in range(0, batches, every):
        kept = [given[i] for i in range(first, min(first + every, batches)) if [0, i] not in skipped]
        if not kept:
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled="precision" in settings):
            losses = [F.cross_entropy(expected(module.normalise(b.images)).float(), b.targets) for b in kept]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        if clip := settings.get("gradient_clip_val"):
            nn.utils.clip_grad_norm_(expected.parameters(), clip)
        optimizer.step()
    assert run.global_step == -(-batches // every)
    moved = torch.cat([p.detach().flatten() for p in expected.parameters()])
    torch.testing.assert_close(
        weights(module), moved, rtol=1e-4, atol=1e-3 if "precision" in settings else 1e-6
    )


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_sums_and_weights_stay_in_single_precision(precision: Any) -> None:
    """Training, validation and test in half precision: the network is cast, what is measured is not."""
    data = digits(batch_size=100)
    module = classifier(data, class_weights=[1.0 + i for i in range(10)], augment=AUGMENT)
    run = trainer(precision=precision, limit_train_batches=4)
    run.fit(module, datamodule=data)
    (found,) = run.test(module, datamodule=data, verbose=False)
    half = torch.bfloat16 if precision == "bf16-true" else torch.float16
    assert {p.dtype for p in module.network.parameters()} == {half}
    evaluation = module.test_metrics.own["evaluation"]
    assert module.train_metrics.loss.total.dtype == evaluation.bins.dtype == torch.float32
    assert torch.equal(module.loss.get_buffer("weight"), torch.arange(1.0, 11.0))
    counts = module.tested["predictions"] == module.tested["targets"]
    assert found["test/top1"] == pytest.approx(
        counts.double().mean().item(), abs=1e-6
    )  # 359 is no number of bfloat16


def test_padding_counts_nowhere() -> None:
    module = classifier().eval()
    module._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    batch, targets = images(6), torch.tensor([3, 0, 1, 4, 0, 0])
    kept, none = torch.tensor([1, 0, 1, 1, 0, 0]).bool(), torch.zeros(2).bool()
    module.test_step(Batch(batch, targets, torch.arange(6), kept), 0)
    module.test_step(Batch(batch[:2], torch.tensor([0, 0]), torch.tensor([0, 0]), none), 1)
    logits = module(batch[kept])
    assert module.gathered.compute()["indices"].tolist() == [0, 2, 3]
    found = module.test_metrics.compute_and_reset()
    assert float(found["top1"]) == pytest.approx((logits.argmax(1) == targets[kept]).float().mean().item())
    assert float(found["loss"]) == pytest.approx(F.cross_entropy(logits, targets[kept]).item(), rel=1e-5)


def test_a_process_that_has_padding_alone() -> None:
    """Its metrics have states of the same shapes as the others', which wait for them."""
    auroc = {"auroc": {"_target_": "torchmetrics.AUROC"}}
    module = classifier(metrics=auroc).eval()
    module._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    none = torch.zeros(2).bool()
    for _ in range(2):
        module.test_step(Batch(images(2), torch.tensor([0, 0]), torch.tensor([0, 0]), none), 0)
    assert {name: len(rows) for name, rows in module.gathered.rows().items()} == {
        "indices": 0, "targets": 0, "predictions": 0, "confidences": 0
    }  # fmt: skip
    module.test_metrics.update_added()
    (scores,) = module.test_metrics.added["auroc"].preds  # type: ignore[union-attr, misc]
    assert scores.shape == (0, 10) and module.test_metrics.loss.samples == 0


@pytest.mark.parametrize(
    ("computed", "words"),
    [
        (Outputs(torch.ones(2, requires_grad=True), *[torch.ones(2)] * 2), "of the shape (2,); expected one"),
        (Outputs(torch.ones(1, requires_grad=True), *[torch.ones(2)] * 2), "of the shape (1,); expected one"),
        (Outputs(torch.tensor(1.0), *[torch.ones(2)] * 2), "the training loss has no gradient"),
        (None, "compute gives NoneType in place of a loss; expected an imgcls.Outputs"),
        ((torch.tensor(1.0), torch.ones(2)), "compute gives tuple in place of a loss"),
    ],
)
def test_a_loss_that_can_not_teach(computed: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = classifier()
    module._trainer = SimpleNamespace(current_epoch=0)  # type: ignore[assignment]
    monkeypatch.setattr(module, "compute", lambda batch, stage: computed)
    batch = Batch(images(2), torch.tensor([0, 1]), torch.arange(2), torch.ones(2).bool())
    with pytest.raises(UserError, match=re.escape(words)):
        module.training_step(batch, 0)


class Recorder(Callback):
    """Keeps the weights that each step left."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        network = pl_module.network
        assert isinstance(network, nn.Module)
        self.seen.append({name: value.clone() for name, value in network.state_dict().items()})


def averaged(seen: list[dict[str, Tensor]], decay: float, every: int) -> dict[str, Tensor]:
    average: dict[str, Tensor] = {}
    for n, current in enumerate(seen[every - 1 :: every]):
        share = min(decay, (1 + n) / (10 + n))
        for name, value in current.items():
            if value.is_floating_point():
                average[name] = share * average[name] + (1 - share) * value if n else value
    return average


@pytest.mark.parametrize(("decay", "every"), [(0.999, 1), (0.2, 1), (0.999, 3)])
def test_ema(decay: float, every: int, tmp_path: Path) -> None:
    data = digits()
    module, recorder = classifier(data), Recorder()
    keep = ModelCheckpoint(tmp_path, save_weights_only=False)
    callbacks: list[Callback] = [EMA(decay, every), recorder, keep, SaveConfig({"run_dir": str(tmp_path)})]
    run = trainer(max_epochs=2, limit_train_batches=6, callbacks=callbacks, enable_checkpointing=True)
    run.fit(module, datamodule=data)
    validated = {
        name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")
    }
    (tested,) = run.test(
        module, datamodule=data, ckpt_path=keep.best_model_path, weights_only=True, verbose=False
    )

    loaded, _ = load_checkpoint(Path(keep.best_model_path))
    state, expected = loaded.network.state_dict(), averaged(recorder.seen, decay, every)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(state["head.weight"], recorder.seen[-1]["head.weight"], atol=1e-4)
    (again,) = trainer().test(loaded, datamodule=data, verbose=False)
    assert again == pytest.approx(tested, rel=1e-6)
    (again,) = trainer().validate(loaded, datamodule=data, verbose=False)
    assert again == pytest.approx(validated, rel=1e-6)
    assert torch.equal(weights(loaded), weights(module))


def test_ema_leaves_training_as_it_is() -> None:
    results: list[dict[str, Tensor]] = []
    make: list[Callable[[], list[Callback]]] = [list, lambda: [EMA(0.9)]]
    for callbacks in make:
        prepare(0)
        data, recorder = digits(), Recorder()
        run = trainer(
            max_epochs=2, limit_train_batches=3, limit_val_batches=1, callbacks=[*callbacks(), recorder]
        )
        run.fit(classifier(data), datamodule=data)
        results.append(recorder.seen[-1])
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
