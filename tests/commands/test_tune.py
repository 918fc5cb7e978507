"""imgcls train tune=…: a suggestion, a plot, a command; and nothing changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from imgcls.callbacks.distillation import Distillation
from imgcls.callbacks.finetune import Finetune
from imgcls.callbacks.progressive_resizing import ProgressiveResizing
from imgcls.commands.tune import tune
from imgcls.data.digits import Digits
from imgcls.tasks.classification import ImageClassifier


@pytest.mark.slow
def test_as_used(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    here("train", "tune=lr", "optimizer=sgd", "trainer.accelerator=cpu")
    (run,) = Path("runs").glob("*/*/tune.json")
    rate = json.loads(run.read_text())["optimizer.lr"]
    assert 1e-4 < rate <= 1
    said = capsys.readouterr().out
    assert f"train with it: imgcls train optimizer=sgd trainer.accelerator=cpu optimizer.lr={rate:g}" in said
    assert (run.parent / "learning_rate.png").stat().st_size > 5000
    assert not list(run.parent.glob("**/*.ckpt")) and not (run.parent / "metrics.csv").exists()


def test_a_rate_that_a_rule_gives(said: Callable[..., str]) -> None:
    line = said("train", "tune=lr", "trainer=cpu", "optimizer.lr_per_256=0.1")
    assert line.endswith(
        "tune=lr finds optimizer.lr, in whose place optimizer.lr_per_256 is given; leave it out"
    )


def classifier(data: Digits) -> ImageClassifier:
    return ImageClassifier(
        vars(data.spec), {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4},
        {"_target_": "torch.nn.CrossEntropyLoss"}, {"_target_": "torch.optim.SGD", "lr": 0.1},
        {"_target_": "imgcls.optim.constant"},
    )  # fmt: skip


def cpu_trainer(folder: Path, callbacks: list[Callback] | None = None) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        max_epochs=5,
    )


@pytest.mark.parametrize("kind", ["lr", "batch_size"])
def test_nothing_is_changed(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Digits(batch_size=32)
    data.setup()
    module = classifier(data)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = cpu_trainer(tmp_path)
    found = tune(kind, trainer, module, data, tmp_path)
    assert 1e-3 < found <= 1 if kind == "lr" else found in (16, 32, 64, 128, 256, 512, 1024, 1295)
    assert data.batch_size == 32 and module.hparams["optimizer"]["lr"] == 0.1
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert capsys.readouterr().err == ""  # no bar where there is no terminal
    assert not list(tmp_path.glob("*.ckpt")) and not list(tmp_path.glob(".*.ckpt"))


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("kind", ["lr", "batch_size"])
def test_what_is_learned_is_as_in_training(kind: str, tmp_path: Path) -> None:
    """Frozen layers are frozen, a teacher is heard, images grow; for the batch size they are the largest."""
    data = Digits(batch_size=32, image_size=16)
    data.setup()
    module = classifier(data)
    teacher = tmp_path / "teacher.ckpt"
    torch.save(
        {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "config": {}}, teacher
    )
    callbacks: list[Callback] = [
        Finetune(head_epochs=None),
        ProgressiveResizing(0.5, multiple=4),
        Distillation(str(teacher)),
    ]
    seen = set()

    def look(network: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        frozen = network.get_submodule("features.1")
        seen.add(
            (
                network.get_submodule("head").training,
                frozen.training,
                inputs[0].shape[-1],
                len(module.loss_terms),
            )
        )

    module.network.register_forward_pre_hook(look)
    trainer = cpu_trainer(tmp_path, callbacks)
    tune(kind, trainer, module, data, tmp_path)
    trained = {entry[1:] for entry in seen if entry[0]} - {(True, 8, 0)}  # where the smallest size is tried
    assert {(frozen, distilled) for frozen, _, distilled in trained} == {(False, 1)}
    assert min(size for _, size, _ in trained) == (8 if kind == "lr" else 16)


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
def test_no_layer_thaws_while_rates_are_tried(tmp_path: Path) -> None:
    """The finder tries more steps than two epochs have; after the first, more than the head would learn."""
    data = Digits(batch_size=32)
    data.setup()
    module, learning = classifier(data), set[tuple[bool, int]]()

    def look(network: torch.nn.Module, _: object) -> None:
        body = [p for name, p in network.named_parameters() if not name.startswith("head.")]
        learning.add((any(p.requires_grad for p in body), module.current_epoch))

    module.network.register_forward_pre_hook(look)
    tune("lr", cpu_trainer(tmp_path, [Finetune(head_epochs=1, layer_epochs=1)]), module, data, tmp_path)
    assert {epoch for _, epoch in learning} >= {0, 1, 2}
    assert {thawed for thawed, epoch in learning if epoch} == {False}
