"""Ways to lose a run: what was learned stays, and a line says what to do."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.command import imgcls
from support.runs import SHORT

from imgcls.engine import run_directory
from imgcls.engine.signals import STOPPED
from imgcls.errors import UserError
from imgcls.tasks.classification import ImageClassifier

Said = Callable[..., str]
Train = Callable[..., Any]
ODD = "läufe/my run [1], a=b (x) 'q' $HOME"


def rates(run: str) -> list[float]:
    with Path(run, "metrics.csv").open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def test_what_is_changed_at_a_resume(said: Said, train: Train, cut: Path) -> None:
    """It has its effect, or is refused."""
    for override in ("backbone.width=16", "optimizer.weight_decay=0.1", "scheduler.final=0.1"):
        assert f"{override}: the checkpoint has its state" in said("train", "resume=cut", override)
    shutil.copytree("cut", "faster")
    assert train("resume=cut") is None
    assert train("resume=faster", "optimizer.lr=0.01", stop=35) == STOPPED
    assert train("resume=faster") is None  # it stays so
    for before, now in zip(rates("cut")[2:], rates("faster")[2:], strict=True):
        assert now == pytest.approx(before * 0.01 / 0.002)
    content = torch.load("cut/checkpoints/last.ckpt", weights_only=True)
    content["state_dict"] = {f"network.other.{name}": value for name, value in content["state_dict"].items()}
    torch.save(content, "cut/checkpoints/last.ckpt")
    message = said("train", "resume=cut", "trainer.max_epochs=4")
    assert "last.ckpt is of another network than this code builds" in message


def test_a_run_of_another_version(said: Said, cut: Path) -> None:
    config = cut / "config.yaml"
    config.write_text(config.read_text().replace("imgcls.tasks.losses.", "imgcls.losses."))
    message = said("train", "resume=cut")
    assert message.startswith(
        "imgcls train: cut was begun by another version of imgcls (loss._target_=imgcls"
    )
    assert message.endswith("; start a new run from backbone.weights=cut/checkpoints/best.ckpt")


def test_a_folder_with_an_odd_name(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*SHORT, "test=false", f"hydra.run.dir={ODD}", stop=27) == STOPPED
    assert f"imgcls train 'resume={ODD}'".replace("'q'", "'\"'\"'q'\"'\"'") in capsys.readouterr().out
    assert train(f"resume={ODD}") is None
    assert json.loads(Path(ODD, "status.json").read_text())["status"] == "finished"


def test_killed_while_it_starts_over(said: Said, train: Train, cut: Path) -> None:
    """The config went first, so that nothing looks like the run before; `resume=auto` begins anew."""
    assert run_directory.OWN[0] == "config.yaml"
    (cut / "config.yaml").unlink()
    assert "there is no run in it" in said("train", "resume=cut")
    again = [*SHORT, "test=false", "hydra.run.dir=cut", "trainer.max_epochs=1", "seed=1"]
    assert train(*again, "resume=auto") is None
    last = torch.load("cut/checkpoints/last.ckpt", weights_only=True)
    assert last["config"]["seed"] == 1 and last["global_step"] == 20 and len(rates("cut")) == 1


def test_what_is_damaged(said: Said, train: Train, cut: Path) -> None:
    files = [cut / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    for given in ("resume=cut", "resume=auto"):
        message = (
            said("train", *SHORT, "hydra.run.dir=cut", given) if "auto" in given else said("train", given)
        )
        assert (
            "previous.ckpt is damaged" in message and "backbone.weights=cut/checkpoints/best.ckpt" in message
        )
    (cut / "config.yaml").write_text("trainer: [")
    assert "cut/config.yaml is no config of a run" in said("train", "resume=cut")
    (cut / "config.yaml").write_text("")
    assert "cut/config.yaml is no config of a run" in said("train", "resume=cut")
    Path("empty").mkdir()
    assert train(*SHORT, "test=false", "trainer.max_epochs=1", "hydra.run.dir=empty", "resume=auto") is None


def test_data_that_moved(said: Said, train: Train, folder: Path) -> None:
    options = [
        "data=imagefolder",
        f"data.root={folder}",
        "data.image_size=16",
        "data.batch_size=4",
        "data.num_workers=0",
    ]
    assert (
        train(*options, "logger=csv", "test=false", "trainer.max_epochs=2", "hydra.run.dir=run", stop=8)
        == STOPPED
    )
    folder.rename("elsewhere")
    assert f"data.root={folder}: there is no such folder" in said("train", "resume=run")
    Path("elsewhere/cat/00.jpg").rename("00.jpg")
    assert "the data is not what this run began with" in said(
        "train", "resume=run", "data=imagefolder", "data.root=elsewhere"
    )
    Path("00.jpg").rename("elsewhere/cat/00.jpg")
    assert train("resume=run", "data.root=elsewhere") is None


def test_a_run_from_before_there_was_recovery(said: Said, cut: Path) -> None:
    config = yaml.safe_load((cut / "config.yaml").read_text())
    del config["recovery"]
    (cut / "config.yaml").write_text(yaml.safe_dump(config))
    message = said("train", "resume=cut", "recovery.every_minutes=5")
    assert "cut was begun by another version of imgcls (its config has no recovery); start" in message


def test_what_the_record_would_be_wrong_of(said: Said, cut: Path) -> None:
    for override, before in (("seed=5", "0"), ("optimized_metric=val/loss", "val/top1")):
        assert f"{override}: the run began with {before}" in said("train", "resume=cut", override)
    assert "recovery.patience: the run has no such key" in said("train", "resume=cut", "recovery.patience=1")
    for wrong in ("trainer.max_epochs=1", "trainer.max_steps=5"):
        assert f"{wrong}: the run has come to" in said("train", "resume=cut", wrong)
    message = said("train", "resume=cut", "trainer.accelerator=cpu", "trainer.devices=2")
    assert "the checkpoint is from within an epoch, and the number of its processes is 1, here 2" in message


@pytest.mark.parametrize(
    "given", ["run_dir=/elsewhere", "cwd=/", "names.run=x", "++job.number=1", "git=x", "job.sweep=x"]
)
def test_what_a_run_has_from_its_start(given: str) -> None:
    own = {
        "run_dir": "run",
        "cwd": "here",
        "git": "a",
        "names": {"run": ""},
        "job": {"number": 0, "sweep": "s"},
    }
    with pytest.raises(UserError, match=r"the run's record has it from its start; leave it out"):
        run_directory.put(own, own, given)


def test_a_run_at_a_rate_of_0(said: Said, train: Train) -> None:
    assert train(*SHORT, "test=false", "hydra.run.dir=run", "optimizer.lr=0", stop=7) == STOPPED
    message = said("train", "resume=run", "optimizer.lr=0.01")
    assert "optimizer.lr=0.01: the run's rates are 0" in message and "start a new run" in message


def test_other_ways_to_give_a_resume(said: Said, train: Train, cut: Path, tmp_path: Path) -> None:
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    for folder, message in (("cut", "a file can only set auto"), ("nowhere", "there is no run in it")):
        file.write_text(f"# @package _global_\nresume: {folder}\n")
        assert f"resume={folder}: {message}" in said("train", "--config-dir=conf", "experiment=mine")
        assert f"resume={folder}: {message}" in said(
            "train", "-m", "--config-dir=conf", "experiment=mine", "seed=1"
        )
    assert not list(Path().glob("runs/*-*")) and not Path("nowhere").exists()
    assert "resume=nowhere: there is no run in it" in said("train", "++resume=nowhere")
    assert train("++resume=cut") is None
    assert json.loads((cut / "status.json").read_text())["status"] == "finished"
    assert not list(Path().glob("runs/*-*"))


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_what_to_try_is_not_what_is_set(
    train: Train, monkeypatch: pytest.MonkeyPatch, on_nonfinite: str
) -> None:
    loss = ImageClassifier.training_loss

    def infinite(self: ImageClassifier, outputs: Any, targets: Any) -> Any:
        return loss(self, outputs, targets) * float("nan")

    monkeypatch.setattr(ImageClassifier, "training_loss", infinite)
    message = train(*SHORT, "test=false", "hydra.run.dir=run", f"recovery.on_nonfinite={on_nonfinite}")
    assert "a lower optimizer.lr or trainer.gradient_clip_val=1" in message
    assert message.endswith(
        ", or recovery.on_nonfinite=skip" if on_nonfinite == "stop" else "; 3 batches were left out"
    )


def test_a_resume_that_fails_changes_nothing(said: Said, train: Train, cut: Path) -> None:
    """Neither the status, nor the config, nor the record, whether the run was finished or not."""
    for value, status in (("data.batch_size=48", "stopped"), ("trainer.max_epochs=2", "finished")):
        if status == "finished":
            assert train("resume=cut") is None
        before = {
            name: (cut / name).read_text() for name in ("status.json", "config.yaml", "environment.json")
        }
        assert json.loads(before["status.json"])["status"] == status
        said("train", "resume=cut", value)
        assert {name: (cut / name).read_text() for name in before} == before


def test_a_longer_training_follows_its_schedule_at_once(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step is made at the rate that the shorter one ended with; the jump is said, the change kept."""
    options = ["trainer.max_epochs=1", "callbacks=early_stopping", "scheduler.warmup_epochs=0"]
    assert train(*SHORT, *options, "test=false", "hydra.run.dir=run") is None
    capsys.readouterr()
    assert train("resume=run", "trainer.max_epochs=2", "callbacks.early_stopping.patience=7") is None
    assert "the schedule has another end than before: learning rate" in capsys.readouterr().out
    first, second = rates("run")
    assert second == pytest.approx(first / 2)  # half of the way of the longer training
    (entry,) = json.loads(Path("run/environment.json").read_text())["resumed"]
    assert sorted(entry["changed"]) == [
        "callbacks.early_stopping.patience: 10 → 7",
        "trainer.max_epochs: 1 → 2",
    ]
    assert entry["from"] == "last.ckpt"


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_takes_nothing(said: Said, train: Train, cut: Path, kind: str) -> None:
    """At the start of a resume; when it takes files again, the run goes on."""
    disk = Path("disk").absolute()
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        shutil.copytree("cut", disk / "run")
        filling = disk / "filling"
        if kind == "full":
            with filling.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        message = said("train", f"resume={disk}/run")
        assert ("No space left on device" if kind == "full" else "Read-only file system") in message
        if kind == "full":
            filling.unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert train(f"resume={disk}/run") is None
        assert len(rates(f"{disk}/run")) == 3
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_two_at_the_same_instant(cut: Path) -> None:
    """One goes on with the run; the other is refused, or finds it finished."""
    command = [sys.executable, "-m", "imgcls", "train", "resume=cut"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in both]
    assert 0 in [status for *_, status in ended]
    for out, error, status in ended:
        assert status == 0 or "is in use by another process" in error, (out, error)
    assert len(rates("cut")) == 3 and imgcls("train", "resume=cut").returncode == 0
