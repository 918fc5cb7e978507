"""A run goes on where it was: exactly, from whole files alone, and from nothing that isn't its own."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.runs import SHORT, TINY, assert_same_run, read_back, same

from imgcls.backbones.simple_cnn import simple_cnn
from imgcls.engine.signals import STOPPED
from imgcls.runs.checkpoints import damage, find_checkpoint
from imgcls.tasks.classification import ImageClassifier


@pytest.mark.slow
def test_more_than_one_best(said: Callable[..., str], train: Callable[..., Any]) -> None:
    assert "each file needs a name of its own" in said("train", *SHORT, "recovery.save_top_k=2")
    options = ["recovery.save_top_k=2", "recovery.filename='{epoch:03d}'", "trainer.max_epochs=5"]
    assert train(*SHORT, *options, "test=false", "hydra.run.dir=whole") is None
    assert train(*SHORT, *options, "test=false", "hydra.run.dir=cut", stop=65) == STOPPED
    assert train("resume=cut") is None
    kept = sorted(path.name for path in Path("cut/checkpoints").iterdir())
    assert kept == sorted(path.name for path in Path("whole/checkpoints").iterdir())
    assert len(kept) == 4 and {"last.ckpt", "previous.ckpt"} < set(kept)
    with Path("cut/metrics.csv").open() as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["val/top1"]))
    assert find_checkpoint("cut").name == f"{int(best['epoch']):03d}.ckpt"


CASES = {
    "accumulated": ([25, 38], ["trainer.accumulate_grad_batches=3", "callbacks=[ema,early_stopping]",
                               "augment=mix"]),
    "max_steps": ([25, 39], ["trainer.max_epochs=-1", "trainer.max_steps=50", "scheduler=one_cycle"]),
    "plateau": ([10, 45], ["scheduler=plateau", "scheduler.patience=0"]),
    "twice in an epoch": ([23, 31], ["data.num_workers=1", "augment=randaugment", "data.repeats=2"]),
    "gradual": ([25, 45], ["finetune=gradual", "callbacks=[ema,progressive_resizing]",
                           "data.image_size=16"]),
    "linear probe": ([25], ["finetune=linear_probe", "augment=none"]),
    "every second epoch": ([25, 45], ["trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"]),
    "own augmentation": ([25], ["augment=mix", "+augment.batch.drift._target_=support.augmentation.Drift",
                                "+augment.image.shift._target_=support.augmentation.Shift",
                                "callbacks=ema", "data.num_workers=1"]),
    "balanced": ([25, 45], ["data.sampling=balanced"]),
    "dropout": ([25], ["backbone=timm", "backbone.name=vit_tiny_patch16_224", "+backbone.drop_path_rate=0.2",
                       "data.image_size=16", "data.fraction=0.3", "data.batch_size=16"]),
}  # fmt: skip


ALWAYS = ("accumulated", "own augmentation")


def test_without_the_file_of_first_weights(train: Callable[..., Any]) -> None:
    """The checkpoint has all: the run goes on to the same bits where the file of before is gone."""
    torch.save(simple_cnn(10, 1, 8, width=4).state_dict(), "first.pth")
    words = [*TINY, "backbone=simple_cnn", "backbone.width=4", "backbone.weights=first.pth"]
    train(*words, "hydra.run.dir=whole")
    assert train(*words, "hydra.run.dir=cut", stop=3) == STOPPED
    Path("first.pth").unlink()
    assert not isinstance(train("resume=cut"), str)
    assert same(Path("whole"), Path("cut"))
    config = yaml.safe_load(Path("cut/config.yaml").read_text())
    assert config["backbone"]["weights"] == "first.pth"


@pytest.mark.parametrize(
    "case", [c if c in ALWAYS else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_exact(train: Callable[..., Any], case: str) -> None:
    stops, options = CASES[case]
    options = [*options, f"test={case == 'accumulated'}"]
    assert train(*SHORT, *options, "hydra.run.dir=whole") is None
    assert train(*SHORT, *options, "hydra.run.dir=cut", stop=stops[0]) == STOPPED
    assert json.loads(Path("cut/status.json").read_text())["status"] == "stopped"
    for stop in stops[1:]:
        assert train("resume=cut", stop=stop) == STOPPED
    assert train("resume=cut") is None
    assert_same_run(Path("whole"), Path("cut"))
    assert sorted(p.name for p in Path("cut/checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]


def test_damaged_files_are_named_and_the_one_before_is_taken(
    train: Callable[..., Any], cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*SHORT, "test=false", "hydra.run.dir=whole") is None
    last = cut / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    for length in (0, 1, 30, 1000, len(content) // 2, len(content) - 100, len(content) - 1):
        last.write_bytes(content[:length])
        assert damage(last) is not None, length
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(content), (200,), generator=generator).tolist():
        last.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        if damage(last) is None:  # what changed holds nothing: padding, or a date
            assert_loads_alike(last, content)
    last.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert train("resume=cut") is None
    shown = capsys.readouterr().out
    assert "last.ckpt is damaged" in shown and "the one before it is taken" in shown
    whole = [
        torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "cut")
    ]
    assert all(torch.equal(value, whole[1][name]) for name, value in whole[0].items())


def assert_loads_alike(path: Path, content: bytes) -> None:
    """Checks that a file with a flipped byte is refused by torch, or gives the same weights."""
    now = path.with_name("now.ckpt")
    now.write_bytes(content)
    expected = torch.load(now, weights_only=True)["state_dict"]
    now.unlink()
    try:
        found = torch.load(path, weights_only=True)["state_dict"]
    except Exception:
        return
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_run_directory_is_one_runs_own(
    said: Callable[..., str], train: Callable[..., Any], cut: Path
) -> None:
    assert "holds a run already; go on with it by resume=cut" in said("train", *SHORT, "hydra.run.dir=cut")
    code = (
        "import filelock, time; lock = filelock.FileLock('cut/.lock'); lock.acquire(); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert "is in use by another process" in said("train", "resume=cut")
        assert "is in use by another process" in said("train", *SHORT, "hydra.run.dir=cut", "overwrite=true")
        other.kill()
    assert train(*SHORT, "test=false", "hydra.run.dir=cut", "overwrite=true", "trainer.max_epochs=1") is None
    assert len(Path("cut/metrics.csv").read_text().splitlines()) == 2


def test_what_is_said(
    said: Callable[..., str], train: Callable[..., Any], cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no run in it" in said("train", "resume=nowhere")
    assert "give resume=auto" in said("train", "-m", "resume=cut")
    assert "only single values" in said("train", "resume=cut", "backbone=resnet20")
    assert "optimizer.lr=fast: expected" in said("train", "resume=cut", "optimizer.lr=fast")
    Path("cut").rename("moved")
    record = json.loads(Path("moved/environment.json").read_text())
    Path("moved/environment.json").write_text(
        json.dumps({**record, "data": {**record["data"], "train": "other"}})
    )
    assert "the data is not what this run began with" in said("train", "resume=moved")
    Path("moved/environment.json").write_text(json.dumps(record))
    assert train("resume=moved") is None
    assert Path("moved/checkpoints/best.ckpt").exists() and not Path("cut").exists()
    assert len(json.loads(Path("moved/environment.json").read_text())["resumed"]) == 1
    capsys.readouterr()
    assert train("resume=moved") is None
    shown = capsys.readouterr().out
    assert "is finished; there is nothing to go on with" in shown
    assert train("resume=moved", "trainer.max_epochs=4") is None
    assert len(Path("moved/metrics.csv").read_text().splitlines()) == 5


def test_second_interrupt_stops_at_once(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    step = ImageClassifier.normalise

    def twice(self: ImageClassifier, *arguments: Any) -> Any:
        if self.trainer.global_step == 25:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(ImageClassifier, "normalise", twice)
    before = signal.getsignal(signal.SIGINT)
    assert train(*SHORT, "hydra.run.dir=run") == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 20


def test_wandb_goes_on_in_the_same_run(train: Callable[..., Any]) -> None:
    options = [option for option in SHORT if option != "logger=csv"]
    assert train(*options, "test=false", "hydra.run.dir=cut", stop=27) == STOPPED
    found = read_back(Path("cut"))
    assert (
        "preempting" in found["kinds"]
        and found["exit"] == STOPPED
        and found["summary"]["status"] == "stopped"
    )
    assert train("resume=cut") is None
    runs = {path.name.rpartition("-")[2] for path in Path("cut/wandb").glob("offline-run-*")}
    assert len(runs) == 1 and len(list(Path("cut/wandb").glob("offline-run-*"))) == 2


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_loss_that_is_not_finite(
    train: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    on_nonfinite: str,
) -> None:
    loss = ImageClassifier.training_loss

    def infinite(self: ImageClassifier, outputs: Any, targets: Any) -> Any:
        value = loss(self, outputs, targets)
        return value * float("nan") if self.trainer.fit_loop.total_batch_idx == 27 else value

    monkeypatch.setattr(ImageClassifier, "training_loss", infinite)
    options = [*SHORT, "test=false", "hydra.run.dir=run", f"recovery.on_nonfinite={on_nonfinite}"]
    ended = train(*options)
    shown = capsys.readouterr().out
    names = Path("run/nonfinite.txt").read_text().split()
    assert len(names) == 64
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    if on_nonfinite == "stop":
        assert (
            "not finite since batch 27 (epoch 2, batch 8 of it, learning rate 0.00" in ended
            and "nonfinite.txt" in ended
        )
        assert last["global_step"] == 20
    else:
        assert ended is None
        assert "back to the last checkpoint" in shown
        assert last["skipped_batches"] == [[1, 7]] and last["global_step"] == 60


def test_out_of_memory(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    step = ImageClassifier.normalise

    def full(self: ImageClassifier, images: Any, *arguments: Any) -> Any:
        if self.training and len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, images, *arguments)

    monkeypatch.setattr(ImageClassifier, "normalise", full)
    advice = "try data.batch_size=32 trainer.accumulate_grad_batches=6, or find the size with tune=batch_size"
    assert said("train", *SHORT, "trainer.accumulate_grad_batches=3") == (
        f"imgcls train: out of memory at data.batch_size=64; {advice}"
    )


def test_another_batch_size_within_an_epoch(
    said: Callable[..., str], train: Callable[..., Any], cut: Path
) -> None:
    assert "within an epoch it can only become a share of 64" in said(
        "train", "resume=cut", "data.batch_size=48"
    )
    assert train("resume=cut", "data.batch_size=32", "trainer.accumulate_grad_batches=2") is None
    assert torch.load("cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 60
    with Path("cut/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(row["val/top1"] and row["train/loss"] for row in rows)


@pytest.mark.slow
def test_full_disk(tmp_path: Path) -> None:
    """In a file system of 12 MB, that a whole run does not fit into."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        command = [sys.executable, "-m", "imgcls", "train", *SHORT, "test=false", f"hydra.run.dir={disk}/run",
                   "backbone=simple_cnn"]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and "could not be written" in done.stderr, (
            done.stderr
        )
        kept = [path for path in (disk / "run/checkpoints").glob("*.ckpt") if path.name != "best.ckpt"]
        assert kept and all(damage(path) is None for path in kept)
        assert not list((disk / "run").rglob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
