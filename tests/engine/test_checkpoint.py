"""Checkpoint files: what is looked at before one is written, and which is taken to go on from."""

import json
import logging
import math
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import SHORT

from imgcls.engine.checkpoint import write_whole
from imgcls.engine.run_directory import newest_whole
from imgcls.errors import UserError
from imgcls.runs.checkpoints import damage, newest, not_finite
from imgcls.tasks.classification import ImageClassifier

Train = Callable[..., Any]


def content(value: float = 1.0) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((8,), value)}, "number": value}


def number(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["number"])


def test_what_is_not_finite() -> None:
    state = {"a": torch.full((4,), 1e30), "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.int64)}
    assert not_finite(state) == not_finite({}) == []  # though the norm of `a` is infinite
    bad = {"d": torch.tensor([1.0, math.nan]), "e": torch.tensor([-math.inf, 0.0], dtype=torch.bfloat16)}
    assert not_finite(state | bad) == ["d", "e"]


def test_damage_is_also_in_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_whole(content(), path)
    assert damage(path) is None
    write_whole(content(math.nan), path)
    assert damage(path) == "tensors with NaN or infinity: 1, such as weight"
    write_whole(content(-math.inf) | {"infinite": ["weight"]}, path)  # a mask, as the network was built
    assert damage(path) is None


def test_a_damaged_file_replaces_none_that_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    write_whole(content(1), last)
    write_whole(content(2), last)
    last.write_bytes(last.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == previous
    assert "last.ckpt is damaged" in caplog.text and "the one before it is taken" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt.damaged", "previous.ckpt"]
    write_whole(content(3), last)
    assert number(last) == 3 and number(previous) == 1


@pytest.mark.parametrize("killed", ["before the first renaming", "between the two", "a damaged last.ckpt"])
def test_a_whole_partial_counts(tmp_path: Path, killed: str) -> None:
    last, partial = tmp_path / "last.ckpt", tmp_path / "last.partial"
    for value in (1, 2):
        write_whole(content(value), last)
    torch.save(content(3), partial)
    if killed == "between the two":
        last.replace(tmp_path / "previous.ckpt")
    elif killed == "a damaged last.ckpt":
        last.write_bytes(b"")
    assert newest(tmp_path) == (partial, {})
    assert newest_whole(tmp_path) == last and number(last) == 3 and not partial.exists()
    assert number(tmp_path / "previous.ckpt") == (1 if killed == "a damaged last.ckpt" else 2)
    assert (tmp_path / "last.ckpt.damaged").exists() == (killed == "a damaged last.ckpt")
    partial.write_bytes(last.read_bytes()[:200])  # killed while it wrote: that is no damage
    assert newest_whole(tmp_path) == last


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_says_what_is_left(disk: Path) -> None:
    last = disk / "run" / "checkpoints" / "last.ckpt"
    large = content() | {"more": torch.zeros(2**20)}
    with pytest.raises(UserError) as caught:
        write_whole(large, last)
    message = str(caught.value)
    start = f"disk/run/checkpoints/last.ckpt could not be written: the disk at {disk} has "
    assert message.startswith(start) and " bytes free (" in message
    assert message.endswith(
        "no checkpoint to go on from is left, the run begins anew with imgcls train resume=disk/run"
    )
    write_whole(content(), last)
    with pytest.raises(
        UserError, match=r"goes on from disk/run/checkpoints/last.ckpt with imgcls train resume=disk/run$"
    ):
        write_whole(large, last)
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"] and damage(last) is None


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_step_that_spoils_the_network(
    train: Train, monkeypatch: pytest.MonkeyPatch, on_nonfinite: str
) -> None:
    """In the last step of an epoch, after a loss that was finite: nothing of it is kept."""
    loss = ImageClassifier.training_loss

    def spoiling(self: ImageClassifier, outputs: Any, targets: Any) -> Any:
        if self.trainer.fit_loop.total_batch_idx == 39:
            self.network.get_buffer("features.1.running_var").data.fill_(math.inf)
        return loss(self, outputs, targets)

    monkeypatch.setattr(ImageClassifier, "training_loss", spoiling)
    ended = train(*SHORT, "test=false", "hydra.run.dir=run", f"recovery.on_nonfinite={on_nonfinite}")
    status = json.loads(Path("run/status.json").read_text())["status"]
    for name in ("last", "best"):
        state = torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
        assert not_finite(state) == []
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    if on_nonfinite == "stop":
        assert "the network is not finite after batch 39 (epoch 2, batch 20 of it, learning rate" in ended
        assert ": 1, such as network.features.1.running_var. The weights before are in " in ended
        assert "The weights before are in run/checkpoints/last.ckpt: try" in ended
        assert status == "failed" and last["global_step"] == 20
    else:
        assert ended is None and status == "finished"
        assert last["skipped_batches"] == [[1, 19]] and last["global_step"] == 60


def test_a_rate_that_spoils_the_first_epoch(train: Train) -> None:
    options = [
        "data.fraction=0.3",
        "scheduler=constant",
        "optimizer=sgd",
        "backbone=resnet20",
        "optimizer.lr=1.5e3",
    ]
    ended = train("logger=csv", "trainer.max_epochs=1", *options, "hydra.run.dir=run")
    assert "the network is not finite after batch 5" in ended and "There is no checkpoint before it" in ended
    assert json.loads(Path("run/status.json").read_text())["status"] == "failed"
    assert not list(Path("run").rglob("*.ckpt"))


def test_a_rate_that_spoils_a_resume(train: Train, cut: Path) -> None:
    """The checkpoint and the config stay as they were: the run can go on."""
    config = (cut / "config.yaml").read_text()
    ended = train("resume=cut", "optimizer.lr=1e30")
    assert "not finite" in ended and "The weights before are in cut/checkpoints/last.ckpt" in ended
    assert damage(cut / "checkpoints" / "last.ckpt") is None
    assert (cut / "config.yaml").read_text() == config
    assert train("resume=cut") is None


def test_a_checkpoint_of_ones_own_is_kept_beside(train: Train) -> None:
    settings = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "val/loss"}
    settings |= {"dirpath": "run/checkpoints", "filename": "lowest"}
    own = [f"+callbacks.lowest.{key}={value}" for key, value in settings.items()]
    assert train(*SHORT, *own, "callbacks=early_stopping", "test=false", "hydra.run.dir=run") is None
    kept = {path.name for path in Path("run/checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt", "previous.ckpt", "lowest.ckpt"}
