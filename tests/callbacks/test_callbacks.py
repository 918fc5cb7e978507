"""Callbacks of our own, beside those of test_finetune.py and test_classification.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from imgcls.backbones.build import build_network
from imgcls.callbacks.distillation import Distillation
from imgcls.callbacks.ema import EMA
from imgcls.callbacks.finetune import Finetune
from imgcls.callbacks.progressive_resizing import ProgressiveResizing
from imgcls.config import check as configs
from imgcls.data.digits import Digits
from imgcls.engine.ranks import FullyShardStrategy
from imgcls.errors import UserError
from imgcls.loggers.progress import EpochProgress
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.metrics import Outputs

SIMPLE = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}


def fit(
    data: Digits, callbacks: list[Callback], backbone: dict[str, Any] = SIMPLE, **settings: Any
) -> ImageClassifier:
    module = ImageClassifier(
        vars(data.spec), backbone, {"_target_": "torch.nn.CrossEntropyLoss"},
        {"_target_": "torch.optim.SGD", "lr": 0.1}, {"_target_": "imgcls.optim.constant"},
    )  # fmt: skip
    settings = {"max_epochs": 4, "limit_train_batches": 2, "limit_val_batches": 1, **settings}
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": any(isinstance(callback, EpochProgress) for callback in callbacks),
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(
        accelerator="cpu", callbacks=callbacks, use_distributed_sampler=False, **quiet, **settings
    )
    trainer.fit(module, datamodule=data)
    return module


class Sizes(Callback):
    """Keeps the sizes of the images that a network got in training and in evaluation."""

    def __init__(self) -> None:
        self.train: list[int] = []
        self.val: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def look(network: Any, inputs: tuple[Tensor]) -> None:
            (self.train if network.training else self.val).append(inputs[0].shape[-1])

        pl_module.network.register_forward_pre_hook(look)  # type: ignore[union-attr, operator]


def test_images_grow() -> None:
    resizing = ProgressiveResizing(0.5, 0.75, multiple=32)
    assert [resizing.size(epoch, 8, 224) for epoch in range(8)] == [128, 128, 160, 160, 192, 192, 224, 224]
    assert ProgressiveResizing(0.3, 1.0, multiple=16).size(0, 10, 40) == 16
    assert ProgressiveResizing(0.1, 1.0, multiple=64).size(0, 10, 100) == 64
    sizes = Sizes()
    data = Digits(batch_size=32, image_size=16)
    fit(data, [ProgressiveResizing(0.5, 0.5, multiple=4), sizes])
    assert sizes.train == [8, 8, 12, 12, 16, 16, 16, 16]
    assert set(sizes.val) == {16}


def test_a_network_of_one_size_is_refused_before_training() -> None:
    data = Digits(batch_size=32, image_size=32, channels=3)
    backbone = {"_target_": "imgcls.backbones.timm.timm_network", "name": "vit_tiny_patch16_224"}
    with pytest.raises(UserError, match="3×16×16 do not fit"):
        fit(data, [ProgressiveResizing(0.5)], backbone)


@pytest.mark.parametrize("given", [{"start": 0.0}, {"until": 1.5}, {"multiple": 0}])
def test_wrong_settings(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="ProgressiveResizing"):
        ProgressiveResizing(**given)


def test_no_end_is_said() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs"):
        fit(Digits(batch_size=32), [ProgressiveResizing()], max_epochs=-1, max_steps=4)


def test_by_config(here: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []  # in training; evaluation names none
    normalise = ImageClassifier.normalise

    def seen(self: ImageClassifier, images: torch.Tensor, size: int | None = None) -> torch.Tensor:
        sizes.extend([size] if size else [])
        return normalise(self, images, size)

    monkeypatch.setattr(ImageClassifier, "normalise", seen)
    here(
        "train", "data.image_size=16", "callbacks=progressive_resizing", "debug=fast",
        "callbacks.progressive_resizing.multiple=4", "trainer.max_epochs=2", "logger=csv",
    )  # fmt: skip
    assert sizes == [8, 8, 12, 12]


def test_a_student_learns_from_its_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Digits(batch_size=64)
    teacher = fit(data, [], max_epochs=2, limit_train_batches=20)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(teacher)
    path = tmp_path / "teacher.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"config": {}}, path)
    student = fit(data, [], max_epochs=0)
    wish = Distillation(str(path), temperature=2.0, weight=0.25)
    wish.on_fit_start(trainer, student)
    batch = data.sets["train"].__getitems__(range(32))
    images = student.normalise(batch.images)
    own = student.network(images)
    theirs = teacher.eval().network(images)
    p, q = (theirs / 2).softmax(1), (own / 2).softmax(1)
    expected = 0.75 * 3.0 + 0.25 * 4 * (p * (p / q).log()).sum(1).mean()
    outputs = Outputs(torch.tensor(3.0), own, batch.targets, images)
    assert wish.loss(student, outputs).item() == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(UserError, match="expected the same"):
        wish.on_fit_start(trainer, fit(Digits(batch_size=64, channels=3), [], max_epochs=0))
    alone = fit(
        data, [Distillation(str(path), temperature=2.0, weight=1.0)], max_epochs=20, limit_train_batches=20
    )
    many = data.sets["train"].__getitems__(range(1024)).images
    agree = (alone.eval()(many).argmax(1) == teacher(many).argmax(1)).float().mean()
    assert agree > 0.6
    assert not any("teacher" in name for name in alone.state_dict())
    fit(data, [Finetune(head_epochs=None), Distillation(str(path))], max_epochs=1)  # from images


def test_a_teacher_with_weights_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It sees images of its own size, mean and deviation; of the classes that a file does not name, a line
    says so."""
    network = timm.create_model("test_vit").eval()
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    vit = {"_target_": "imgcls.backbones.timm.timm_network", "name": "test_vit.r160_in1k"}
    wish = Distillation(backbone={**vit, "weights": str(tmp_path / "vit.pth")}, temperature=2.0, weight=1.0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    names = [f"class {i}" for i in range(1000)]
    spec = {"class_names": names, "channels": 3, "image_size": 32, "mean": [0.4], "std": [0.2]}
    with pytest.raises(UserError, match="other shape: head.weight 1000×64 for 2×64"):
        wish.on_fit_start(trainer, ImageClassifier(spec | {"class_names": names[:2]}, SIMPLE))
    student = ImageClassifier(spec, SIMPLE)
    with caplog.at_level("INFO"):
        wish.on_fit_start(trainer, student)
    said = "vit.pth does not name its classes; they are taken to be the data's: class 0, class 1, …"
    assert said in caplog.text and not any(p.requires_grad for p in wish.teacher.parameters())
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    images = student.normalise(pictures)
    outputs = Outputs(torch.tensor(0.0), student.network(images), torch.zeros(4), images)
    pixels = F.interpolate(pictures / 255, (160, 160), mode="bilinear", antialias=True)
    p, q = (network((pixels - 0.5) / 0.5) / 2).softmax(1), (outputs.logits / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    assert wish.loss(student, outputs).item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_teacher_by_config(here: Callable[..., None], said: Callable[..., str]) -> None:
    torch.manual_seed(0)
    network = build_network(SIMPLE, 10, 1, 8)
    torch.save(network.state_dict(), "teacher.pth")
    given = ["train", "debug=fast", "logger=csv", "callbacks=distillation"]
    backbone = "callbacks.distillation.backbone"
    chosen = [*given, f"backbone@{backbone}=simple_cnn", f"{backbone}.weights=teacher.pth"]
    here(*chosen, f"{backbone}.width=4", "hydra.run.dir=run")
    assert "other shape: " in said(*chosen, f"{backbone}.width=8")
    assert "it has not learnt" in said(*given, f"backbone@{backbone}=simple_cnn")
    assert "expected one teacher; write callbacks.distillation.teacher=RUN, or backbone@" in said(*given)
    assert "takes no 'widht'" in said(*chosen, f"+{backbone}.widht=4")


@pytest.mark.parametrize("given", [{"temperature": 0.0}, {"weight": 1.5}])
def test_wrong_distillation(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"callbacks\.{next(iter(given))}="):
        configs.check(
            {"_target_": "imgcls.callbacks.distillation.Distillation", "teacher": "nowhere", **given},
            "callbacks",
        )


def test_a_sharded_network_has_no_mean() -> None:
    trainer = Trainer(accelerator="cpu", strategy=FullyShardStrategy(), logger=False)
    with pytest.raises(UserError, match=r"a sharded network \(trainer=fsdp\) can't be averaged; leave"):
        EMA().setup(trainer, fit(Digits(batch_size=64), [], max_epochs=0), "fit")


def test_progress_shows_no_validation_of_an_epoch_before(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="imgcls.loggers.progress"):
        fit(Digits(batch_size=32), [EpochProgress()], check_val_every_n_epoch=2)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert ["val/top1" in line for line in lines] == [False, True, False, True]
    assert all("train/top1" in line for line in lines)
