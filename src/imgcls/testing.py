"""Tests to inherit: what each network, task and data set must do. For pytest, in the folder of a project:

class TestLeafnet(BackboneTests):
    config = {"_target_": "leafnet.backbone.leafnet"}
"""

import csv
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from imgcls.__main__ import main
from imgcls.backbones.build import build_network
from imgcls.backbones.layers import head_names
from imgcls.callbacks.step_curves import StepCurves
from imgcls.data.batch import Batch
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import build_data
from imgcls.engine.signals import STOPPED
from imgcls.runs.checkpoints import find_checkpoint, load_content
from imgcls.spec import ImageSize, sides

NAMES = ("whole", "cut")


def command(*words: str) -> Any:
    """Runs `imgcls` with these words in this process; returns what it ends with."""
    GlobalHydra.instance().clear()
    before, sys.argv = sys.argv, ["imgcls", *words]
    try:
        return main()
    except SystemExit as ended:
        return ended.code
    finally:
        sys.argv = before


class BackboneTests:
    """Tests of a network.

    Attributes:
        config: as in conf/backbone: `_target_` and its arguments.
        classes, channels, sizes: the shapes that it must take.
    """

    config: ClassVar[dict[str, Any]]
    classes: ClassVar[tuple[int, ...]] = (2, 10)
    channels: ClassVar[tuple[int, ...]] = (1, 3)
    sizes: ClassVar[tuple[ImageSize, ...]] = (16, 32)

    def network(
        self, classes: int | None = None, channels: int | None = None, size: ImageSize | None = None
    ) -> nn.Module:
        """Builds the network, always with the same seed."""
        torch.manual_seed(0)
        shape = (classes or self.classes[0], channels or self.channels[0], size or self.sizes[0])
        return build_network(self.config, *shape)

    def images(self, count: int = 4, channels: int | None = None, size: ImageSize | None = None) -> Tensor:
        return torch.rand(count, channels or self.channels[0], *sides(size or self.sizes[0]))

    def test_shapes(self) -> None:
        for classes in self.classes:
            for channels in self.channels:
                for size in self.sizes:
                    network = self.network(classes, channels, size).eval()
                    assert network(self.images(3, channels, size)).shape == (3, classes)

    def test_every_parameter_gets_a_gradient(self) -> None:
        network = self.network().train()
        outputs = network(self.images(8))
        sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
        assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        one, other = self.network().state_dict(), self.network().state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_the_head_is_named(self) -> None:
        network = self.network()
        assert head_names(network), "set network.head_names = ('name of the last layer',)"
        assert isinstance(network.get_submodule(head_names(network)[0]), nn.Module)

    def test_save_and_load(self, tmp_path: Path) -> None:
        network, images = self.network().eval(), self.images()
        torch.save(network.state_dict(), tmp_path / "weights.pt")
        torch.manual_seed(1)
        other = build_network(self.config, self.classes[0], self.channels[0], self.sizes[0]).eval()
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(network(images), other(images))


class TaskTests:
    """Tests of a task, through the command line, in the folder of the project.

    Attributes:
        overrides: a command line of `imgcls train` that takes a second or two, with two epochs or more.
        learns: to which share of its first value the loss on one batch must fall.
    """

    overrides: ClassVar[list[str]]
    learns: ClassVar[float] = 0.5

    def train(self, folder: Path, *more: str) -> Any:
        return command(
            "train", *self.overrides, "logger=csv", "trainer=cpu", *more, f"hydra.run.dir={folder}"
        )

    def test_trains_and_its_checkpoint_gives_the_same_numbers(self, tmp_path: Path) -> None:
        assert not isinstance(self.train(tmp_path / "run"), str)
        assert command("eval", f"checkpoint={tmp_path}/run", f"hydra.run.dir={tmp_path}/eval") in (None, 0)
        first = json.loads((tmp_path / "run/test/metrics.json").read_text())
        (found,) = (tmp_path / "eval").rglob("metrics.json")
        again = json.loads(found.read_text())
        for name in set(first) & set(again):
            if isinstance(first[name], float):
                assert again[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name

    def test_one_batch_is_learnt_by_heart(self, tmp_path: Path) -> None:
        again = ("debug=overfit", "trainer.max_epochs=60", "trainer.check_val_every_n_epoch=60")
        assert self.train(tmp_path, *again) in (None, 0) or (tmp_path / "metrics.csv").is_file()
        losses = [float(row["train/loss"]) for row in rows(tmp_path) if row.get("train/loss")]
        assert min(losses[-5:]) < self.learns * losses[0]

    def test_stopped_and_resumed_is_the_same_to_the_bit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.train(tmp_path / "whole", "test=false")
        with monkeypatch.context() as patch:
            patch.setattr(StepCurves, "on_train_batch_start", stop_within_the_second_epoch)
            assert self.train(tmp_path / "cut", "test=false") == STOPPED
        assert command("train", f"resume={tmp_path}/cut") != 1
        whole, cut = (load_content(find_checkpoint(f"{tmp_path}/{n}/checkpoints/last.ckpt")) for n in NAMES)
        for name, tensor in whole["state_dict"].items():
            assert torch.equal(tensor, cut["state_dict"][name]), name
        assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def stop_within_the_second_epoch(callback: Any, trainer: Any, task: Any, batch: Any, index: int) -> None:
    if trainer.current_epoch == 1 and index == trainer.num_training_batches // 2:
        os.kill(os.getpid(), signal.SIGTERM)


def rows(run: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's metrics.csv, without times."""
    table = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [
        {key: value for key, value in row.items() if key not in ("images_per_second", "seconds")}
        for row in table
    ]


class DataTests:
    """Tests of a data set.

    Attributes:
        config: as in conf/data: `_target_` and its arguments; small, with a batch size of a few images.
    """

    config: ClassVar[dict[str, Any]]

    def data(self, seed: int = 0) -> ImageDataModule:
        return build_data(self.config, None, seed)

    def batches(self, data: ImageDataModule, epoch: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch."""
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader

    def test_no_picture_is_in_two_splits(self) -> None:
        sets = self.data().sets
        found = {
            name: {part.picture(i).numpy().tobytes() for i in range(len(part))} for name, part in sets.items()
        }
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not found[one] & found[other], f"{one} and {other} have pictures in common"

    def test_batches_are_uint8_of_the_shape_that_the_spec_says(self) -> None:
        data = self.data()
        for batch in self.batches(data):
            assert batch.images.dtype == torch.uint8
            assert batch.images.shape[-3:] == (data.spec.channels, *data.spec.for_training.size)
            assert len(batch.images) == len(batch.targets) == len(batch.indices) == len(batch.valid)

    def test_targets_are_valid(self) -> None:
        data = self.data()
        for part in data.sets.values():
            if part.targets.is_floating_point():
                assert part.targets.isfinite().all()
            else:
                most = data.spec.num_classes - 1 if part.targets.ndim == 1 else 1
                assert part.targets.min() >= 0 and part.targets.max() <= most

    def test_the_same_seed_gives_the_same_order(self) -> None:
        one, other = ([b.indices for b in self.batches(self.data(3), 2)] for _ in range(2))
        assert torch.equal(torch.cat(one), torch.cat(other))

    def test_two_epochs_differ(self) -> None:
        data = self.data()
        one, other = (torch.cat([b.indices for b in self.batches(data, epoch)]) for epoch in (0, 1))
        assert not torch.equal(one, other)
