"""Extensions of a project: files that are added to what `imgcls new` writes, and no file of imgcls changed.

Each folder beside this file has those of one: a metric that others watch (surprise), a regression (sizes), a
set with several labels (pairs), a pretraining whose backbone is probed (simclr), and an augmentation of a
batch that draws (grain).
"""

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import ROOT
from support.pictures import write_picture
from support.projects import EXTENSIONS, project
from support.runs import assert_same_run, jobs

import imgcls
from imgcls.engine.signals import STOPPED
from imgcls.runs.checkpoints import find_checkpoint, load_content

TINY = ("trainer=cpu", "logger=csv", "data.batch_size=24")
FEW = (*TINY, "data.count=240", "trainer.max_epochs=3")
MOST = 80  # lines of Python


def column(run: Path, name: str) -> list[float]:
    """Returns what a run logged under a name, by epoch."""
    return [float(row[name]) for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())]


def measured(run: str) -> dict[str, float]:
    """Returns what the test of a run, or an evaluation, measured."""
    folder = Path(run, "test") if Path(run, "test").is_dir() else Path(run)
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return found


def test_a_metric_that_all_watch(here: Callable[..., None]) -> None:
    """best.ckpt is of the epoch with the least, training stops early, and Optuna looks for the least."""
    import optuna

    with project("surprise", extension=True):
        watched = ("experiment=watched", *FEW, "trainer.max_epochs=5")
        early = ("callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=100")
        here("train", *watched, *early, "hydra.run.dir=run")
        values = column(Path("run"), "val/surprise")
        assert len(values) == 3  # the first is the best so far, and two more are waited for
        assert load_content(Path("run/checkpoints/best.ckpt"))["epoch"] == values.index(min(values))
        assert "test/surprise" in measured("run")
        search = ("sweep=optuna", "sweep.n_trials=3", "sweep.name=search", "optimizer.lr=0.0001,0.01,0.1")
        here("train", "-m", *watched, *search, "test=false", "trainer.max_epochs=2")
        folder = Path("runs/sweeps/search")
        storage = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
        study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(storage))
        found = [min(column(run, "val/surprise")) for run in jobs(folder)]
        assert study.direction.name == "MINIMIZE"
        assert [trial.value for trial in study.trials] == pytest.approx(found)
        assert study.best_value == pytest.approx(min(found))


def test_a_regression(here: Callable[..., None], said: Callable[..., str]) -> None:
    """Trains, and is evaluated, used for prediction and exported; other data is refused at the start."""
    with project("sizes", extension=True):
        here("train", "experiment=regression", *TINY, "hydra.run.dir=run")
        found = measured("run")
        assert found["test/mae"] < 0.6 and found["test/r2"] > 0.8  # radii are from 1 to 6 pixels
        here("eval", "checkpoint=run", "hydra.run.dir=again")
        assert measured("again") == found
        write_picture(Path("pictures/a.png"))
        here("predict", "checkpoint=run", "source=pictures", "out=radii.csv")
        assert len(Path("radii.csv").read_text().splitlines()) == 2
        here("export", "checkpoint=run", "out=net.pt2", "format=torch_export")
        images = torch.stack([imgcls.load("run").data().sets["test"].picture(i) for i in range(3)])
        exported = torch.export.load("net.pt2").module()(images)[:, 0]
        assert torch.allclose(exported, imgcls.load("run").task(images)[:, 0], atol=1e-4)
        line = said("train", "experiment=regression", "data=digits", *TINY)
        assert "the data has classes or labels; expected one float for each picture" in line


def test_several_labels(here: Callable[..., None]) -> None:
    with project("pairs", extension=True):
        here("train", "experiment=several", *TINY, "hydra.run.dir=run")
        found = measured("run")
        assert found["test/map"] > 0.7  # by chance 0.4
        here("eval", "checkpoint=run", "hydra.run.dir=again")
        assert measured("again") == found
        model = imgcls.load("run")
        answers = model.predict([model.data().sets["test"].picture(i) for i in range(20)])
        assert {label for answer in answers for label in answer.labels} == {"disc", "square", "cross"}
        assert len({len(answer.labels) for answer in answers}) > 1


def test_a_pretraining_and_a_probe(here: Callable[..., None], said: Callable[..., str]) -> None:
    """The probe has the backbone as it was pretrained, with a new head."""
    with project("simclr", extension=True):
        small = (*TINY, "data.fraction=0.2", "trainer.max_epochs=2")
        here("train", "experiment=pretrain", *small, "hydra.run.dir=pretrained")
        here("eval", "checkpoint=pretrained", "hydra.run.dir=again")
        assert measured("again") == measured("pretrained")
        here("train", "experiment=probe", "backbone.weights=pretrained", *small, "hydra.run.dir=probe")
        before, after = (load_content(find_checkpoint(run))["state_dict"] for run in ("pretrained", "probe"))
        body = [name for name in after if name.startswith("network.features.")]
        assert body and all(torch.equal(before[name], after[name]) for name in body)
        assert before["network.head.2.weight"].shape == (32, 64)
        assert after["network.head.weight"].shape == (10, 64)
        assert "SimCLR needs two views" in said("train", "experiment=pretrain", "augment=standard", *small)


@pytest.mark.slow
def test_a_probe_of_a_pretrained_backbone_is_better(here: Callable[..., None]) -> None:
    with project("simclr", extension=True):
        here("train", "experiment=pretrain", "trainer=cpu", "test=false", "hydra.run.dir=pretrained")
        here("train", "experiment=probe", "trainer=cpu", "hydra.run.dir=random")
        learnt = "backbone.weights=pretrained"
        here("train", "experiment=probe", "trainer=cpu", learnt, "hydra.run.dir=learnt")
        assert measured("learnt")["test/top1"] > measured("random")["test/top1"] + 0.02


RESUMED = {
    "grain": ("experiment=grain", "augment=grain", *FEW, "test=false"),
    "surprise": ("experiment=watched", *FEW, "test=false"),
    "pairs": ("experiment=several", *FEW, "test=false"),
    "simclr": ("experiment=pretrain", *TINY, "test=false", "data.fraction=0.2", "trainer.max_epochs=3"),
}
KILLS = (("step", 6), ("validation", 1), ("writing", 2))


# The other two are stopped and resumed by the slow test as well, which kills.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("grain", "simclr") else [pytest.mark.slow]) for name in RESUMED],
)
def test_stopped_and_resumed_to_the_bit(name: str, train: Callable[..., Any]) -> None:
    with project(name, extension=True):
        train(*RESUMED[name], "hydra.run.dir=whole")
        assert train(*RESUMED[name], "hydra.run.dir=cut", stop=5) == STOPPED
        assert train("resume=cut", stop=12) == STOPPED
        train("resume=cut")
        assert_same_run(Path("whole"), Path("cut"))
        if name == "grain":
            states = [
                load_content(Path(f"{run}/checkpoints/last.ckpt"))["state_dict"] for run in ("whole", "cut")
            ]
            (key,) = [key for key in states[0] if key.endswith("strength")]
            assert states[0][key] == states[1][key] != 0.25  # it has walked


@pytest.mark.slow  # a process of its own
def test_killed_and_resumed_to_the_bit() -> None:
    """SIGKILL within an epoch, while it is validated, and while the checkpoint is written."""
    listed, folders = list[dict[str, Any]](), list[Path]()
    for name, words in RESUMED.items():
        with project(name, extension=True) as folder:
            folders.append(folder)
        whole, cut = ["hydra.run.dir=whole"], ["hydra.run.dir=cut", "resume=auto"]
        for event, count, run in ((None, 0, whole), *((*kill, cut) for kill in KILLS), (None, 0, cut)):
            arguments = [*words, "recovery.every_minutes=0.0005", *run]
            attempt = {"arguments": arguments, "folder": str(folder), "event": event, "count": count}
            listed.append({**attempt, "signal": signal.SIGKILL})
    Path("attempts.json").write_text(json.dumps(listed))
    command = [sys.executable, str(ROOT / "tests/support/chaos.py"), "attempts.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    statuses = json.loads(done.stdout.splitlines()[-1])
    assert statuses == [0, -9, -9, -9, 0] * len(RESUMED), done.stderr[-3000:]
    for folder in folders:
        assert_same_run(folder / "whole", folder / "cut")


def test_the_lines_that_the_documents_say() -> None:
    """docs/extension.md has the number of lines of each extension, and none is long."""
    text = (ROOT / "docs" / "extension.md").read_text()
    told = {
        name: int(lines) for name, lines in re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", text, re.MULTILINE)
    }
    counted = {
        folder.name: sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))
        for folder in EXTENSIONS.iterdir()
        if (folder / "conf").is_dir()
    }
    assert told == counted and max(counted.values()) <= MOST
