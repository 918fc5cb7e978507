"""Sets in memory that keep their images on the device that trains."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningModule, Trainer
from support.composed import CONF, files
from torch import Tensor, nn

from imgcls.augment.settings import Augment
from imgcls.config.build import build
from imgcls.data.batch import Batch
from imgcls.data.digits import Digits
from imgcls.data.memory import MemoryImages
from imgcls.data.module import SPLITS
from imgcls.errors import UserError

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def ready(**arguments: Any) -> Digits:
    data = Digits(**arguments)
    data.setup()
    return data


def images_of(data: Digits, split: str = "train") -> MemoryImages:
    images = data.sets[split]
    assert isinstance(images, MemoryImages)
    return images


def batches_of(data: Digits) -> list[Batch]:
    return [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]


def same(ours: list[Batch], others: list[Batch]) -> bool:
    pairs = [pair for own, other in zip(ours, others, strict=True) for pair in zip(own, other, strict=True)]
    return all(torch.equal(a.cpu(), b.cpu()) and a.dtype == b.dtype for a, b in pairs)


class Probe(LightningModule):
    """A linear classifier that keeps what Lightning hands to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.batches = nn.Linear(64, 10), list[Batch]()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        return nn.functional.cross_entropy(self.linear(batch.images.flatten(1) / 255), batch.targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(data: Digits, **settings: Any) -> Probe:
    probe = Probe()
    trainer = Trainer(
        max_epochs=1, limit_train_batches=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    trainer.fit(probe, datamodule=data)
    return probe


NOTES = ["ignore:.*does not have many workers", "ignore:.*smaller than the logging interval"]
pytestmark = [pytest.mark.filterwarnings(text) for text in [*NOTES, "ignore:GPU available but not used"]]


def test_the_batches_are_the_same() -> None:
    assert same(batches_of(ready(device="cpu")), batches_of(ready()))


def test_training_on_the_cpu_with_data_there() -> None:
    placed = fitted(ready(device="cpu"), accelerator="cpu").batches
    assert len(placed) == 5 and same(placed, fitted(ready(), accelerator="cpu").batches)


def test_nothing_is_read_from_the_device() -> None:
    """Tensors on torch's meta device have no content: a batch can be made there only if nothing looks into
    it."""
    data = ready()
    images = images_of(data)
    images.to(torch.device("meta"))
    batch = images.__getitems__([3, 1, 7 + 2 * len(images), -1])
    assert {part.device.type for part in batch} == {"meta"}
    assert batch.images.shape == (4, 1, 8, 8) and batch.images.dtype == torch.uint8
    assert batch.targets.shape == batch.indices.shape == (4,) and batch.targets.dtype == torch.int64
    loader = data.train_dataloader()
    assert not loader.pin_memory and all(part.device.type == "meta" for part in next(iter(loader)))


def test_each_rank_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    moved: list[torch.device] = []
    monkeypatch.setattr(MemoryImages, "to", lambda self, device: moved.append(device))
    data = ready(device="cuda")
    assert not moved  # a process that is to be forked must not touch the device
    data.train_dataloader()
    strategy = SimpleNamespace(root_device=torch.device("cuda", 3))
    data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    data.val_dataloader()
    assert moved == [torch.device("cuda"), torch.device("cuda", 3)]


def test_batches_are_pinned_where_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = ready()
    assert data.train_dataloader().pin_memory
    images_of(data).device = torch.device("cuda")
    assert not data.train_dataloader().pin_memory and data.val_dataloader().pin_memory


def refused(**arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        build({"_target_": "imgcls.data.digits.Digits", **arguments}, "data").setup()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nothing_is_loaded(*args: Any) -> Any:
    raise AssertionError


def test_what_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "arrays", nothing_is_loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = "data.device=cuda: there is no CUDA device here; expected one, or data.device=null"
    assert refused(device="cuda") == refused(device="cuda", num_workers=2) == absent
    assert refused(device="cpu", num_workers=2).startswith(
        "data.device=cpu: there is nothing for workers to do"
    )
    assert refused(device="tpu").startswith("data.device=tpu: ")
    with_crops = refused(device="cpu", augment=Augment(crop="resized"))
    assert with_crops.startswith(
        "data.device=cpu: a resized crop and augment.image work image by image, in workers;"
    )


def test_data_and_training_on_different_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = ready(device="cuda")
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=re.escape("data.device=cuda: training is on cpu; expected the same, or")
    ):
        data.train_dataloader()


def test_every_set_in_memory_has_the_key() -> None:
    """And each set has `repeats`."""
    for name in files("data"):
        with initialize_config_dir(str(CONF)):
            data = compose("train", [f"data={name}"]).data
        in_memory = data._target_.rpartition(".")[2] in ("Digits", "TorchvisionImages")
        assert ("device" in data) == in_memory, name
        assert ("repeats" in data) == (name != "streaming"), name


@CUDA
def test_on_a_gpu() -> None:
    data = ready(device="cuda")
    loader, expected = data.train_dataloader(), list(ready().train_dataloader())
    assert same(list(loader), expected)  # also makes what pinned memory there is to be made
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(part.is_cuda for batch in batches for part in batch)
    assert not images_of(data).picture(0).is_cuda


@CUDA
def test_training_on_a_gpu_with_data_there() -> None:
    data = ready(device="cuda")
    probe = fitted(data, accelerator="gpu", devices=1)
    assert all(part.is_cuda for batch in probe.batches for part in batch)
    assert {images_of(data, split).stored.is_cuda for split in SPLITS if split != "test"} == {True}
    assert same(probe.batches, fitted(ready(), accelerator="gpu", devices=1).batches)
