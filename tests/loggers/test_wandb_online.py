"""W&B online, with a stand-in for its server on the loopback: what the client sends of runs."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command import ROOT, imgcls
from support.wandb_server import ENTITY, HISTORY, Run, State, environment, wandb_server

from imgcls.engine.signals import STOPPED
from imgcls.loggers.unharmed import of_experiment
from imgcls.loggers.wandb import telling

WANDB = str(Path(sys.executable).parent / "wandb")
QUICK = ("trainer=cpu", "trainer.log_every_n_steps=5", "trainer.max_epochs=2", "hydra.run.dir=run")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # W&B's process of an earlier test in this one
    with wandb_server() as state:
        for name, value in environment(state).items():
            monkeypatch.setenv(name, value)
        yield state
        assert not state.unknown


def rows_of(run: Run) -> list[tuple[Any, ...]]:
    """The rows of a run's history: their step, and the names that each has."""
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.history]
    return [(row.get("trainer/global_step"), *sorted(row)) for row in rows]


def test_a_run_as_the_client_sends_it(server: State) -> None:
    asked = [
        "logger.wandb.notes=a note",
        "logger.wandb.group=mine",
        "tags=[own]",
        "recovery.gradient_norm=true",
    ]
    models = ["logger.wandb.log_model=true", "logger.wandb.registry=wandb-registry-model/digits"]
    done = imgcls("train", *QUICK, *asked, *models, "logger.wandb.watch=all", "optimizer.lr=0.01")
    assert done.returncode == 0 and "Weights & Biases" not in done.stdout + done.stderr
    (run,) = server.runs.values()
    fields = run.fields
    assert (run.project, fields["entity"], fields["groupName"], fields["jobType"]) == (
        "imgcls",
        ENTITY,
        "mine",
        "train",
    )
    assert fields["displayName"] == (
        "optimizer.lr=0.01,trainer.log_every_n_steps=5,trainer.max_epochs=2,trainer=cpu"
    )
    assert (fields["tags"], fields["notes"]) == (["digits", "simple_cnn", "own"], "a note")
    assert run.exit_code == 0 and run.starts == 1

    settings = run.settings
    assert settings["optimizer"]["lr"] == 0.01 and settings["run"]["run_dir"].endswith("/run")
    assert not {"run_dir", "cwd", "names", "job", "logger", "recovery"} & settings.keys()
    summary = run.summary
    assert {
        "parameters",
        "flops",
        "peak_memory_gb",
        "best/epoch",
        "best/val/top1",
        "test/top1",
    } <= summary.keys()
    assert summary["parameters"] == 288_170 and summary["images_per_second"] > 0

    steps = [row for row in run.history if "train/loss_step" in row]
    assert [row["trainer/global_step"] for row in steps] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert all(row["train/gradient_norm"] > 0 and 0 <= row["lr_step"] <= 0.01 for row in steps)
    tops = [row["val/top1"] for row in run.history if "val/top1" in row]
    assert len(tops) == 2 and max(tops) == summary["best/val/top1"]
    assert any("gradients/" in key for row in run.history for key in row)
    assert {"media/images/test/mistakes", "media/table/test/worst_mistakes"} <= {
        name.rsplit("_", 2)[0] for name in run.files
    }
    kinds = {artifact.type: artifact for artifact in server.artifacts.values()}
    data, model = kinds["dataset"], kinds["model"]
    assert (data.name, data.used_by, data.metadata["class_counts"][0]) == ("data-digits", [run.name], 128)
    assert list(model.manifest["contents"]) == ["best.ckpt"] and "best" in model.aliases
    assert model.linked == ["wandb-registry-model/digits"] and model.state == data.state == "COMMITTED"


@pytest.mark.parametrize("seconds", [0.5, pytest.param(17, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_in_the_same_run(server: State, seconds: float) -> None:
    """Killed within the second epoch, after rows that its last checkpoint does not know; the client sends
    rows every 15 seconds, so that after the shorter time the server has none of them."""
    killer = Path("killer.py")
    killer.write_text(
        "import os, signal, time\n"
        "from imgcls.tasks.task import Task\n"
        "step = Task.training_step\n"
        "def training_step(self, batch, batch_idx):\n"
        "    if self.trainer.global_step == 32:\n"
        f"        time.sleep({seconds}); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch, batch_idx)\n"
        "Task.training_step = training_step\n"
        "from imgcls.__main__ import main\n"
        "main()\n"
    )
    words = ["train", *QUICK, "trainer.max_epochs=3", "recovery.flush_seconds=0"]
    killed = subprocess.run([sys.executable, str(killer), *words], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (run,) = server.runs.values()
    sent = [row["trainer/global_step"] for row in run.history if "train/loss_step" in row]
    assert sent == ([] if seconds < 1 else [5, 10, 15, 20, 25, 30])
    done = imgcls("train", "resume=run")
    assert done.returncode == 0 and "Weights & Biases" not in done.stdout, done.stdout
    assert len(server.runs) == 1 and run.starts == 2 and run.exit_code == 0
    assert not [row for row, count in Counter(rows_of(run)).items() if count > 1]
    steps = [row["trainer/global_step"] for row in run.history if "train/loss_step" in row]
    assert steps == list(range(5 if sent else 25, 61, 5))
    places = sorted(run.streams[HISTORY])
    assert places == list(range(len(places))) == [row["_step"] for row in run.history]


def test_an_offline_sweep_is_uploaded(server: State) -> None:
    words = [
        "seed=0,1",
        "sweep.name=mine",
        "logger.wandb.mode=offline",
        "trainer=cpu",
        "trainer.max_epochs=1",
    ]
    done = imgcls("train", "-m", *words)
    assert done.returncode == 0 and not server.runs
    runs = [str(path) for path in Path().glob("runs/**/wandb/offline-run-*")]
    assert len(runs) == 2
    synced = subprocess.run([WANDB, "sync", *runs], capture_output=True, text=True, timeout=120)
    assert synced.returncode == 0, synced.stderr
    assert {run.fields["groupName"] for run in server.runs.values()} == {"mine"}
    assert sorted(run.settings["seed"] for run in server.runs.values()) == [0, 1]
    assert all(run.exit_code == 0 and run.summary["best/val/top1"] >= 0 for run in server.runs.values())


@pytest.mark.slow
def test_an_agent_runs_trials(server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four trials of the shipped file; the server ends the third early, once it has seen values of it."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    search = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())
    search["command"] += ["trainer=cpu"]
    Path("search.yaml").write_text(yaml.safe_dump(search))
    words = [WANDB, "sweep", "--project", "imgcls", "search.yaml"]
    assert subprocess.run(words, timeout=60).returncode == 0
    ((name, sweep),) = server.sweeps.items()
    sweep.trials = [
        {"optimizer.lr": lr, "data.batch_size": 64, "trainer.max_epochs": epochs}
        for lr, epochs in ((0.001, 1), (0.01, 1), (0.02, 1000), (0.03, 1))
    ]
    sweep.stops = lambda run: any("best/val/top1" in row for row in run.history)
    done = subprocess.run([WANDB, "agent", f"{ENTITY}/imgcls/{name}"], timeout=300)
    assert done.returncode == 0 and len(server.runs) == 4
    runs = [server.runs[one] for one in sweep.begun]
    assert [run.settings["optimizer"]["lr"] for run in runs] == [0.001, 0.01, 0.02, 0.03]
    assert [run.fields["sweep"] for run in runs] == [name] * 4
    assert [run.exit_code for run in runs] == [0, 0, STOPPED, 0]
    ended = runs[2]
    assert ended.summary["status"] == "stopped" and not ended.preempting  # or it would be begun again
    assert ended.summary["best/val/top1"] == max(row.get("val/top1", 0) for row in ended.history)


@pytest.mark.slow
def test_a_run_is_stopped_from_the_page(server: State) -> None:
    """The client asks every 15 s whether somebody pressed the button, and stops the run in order."""
    server.stop_all = True
    done = imgcls("train", "trainer=cpu", "trainer.max_epochs=100000", "hydra.run.dir=run")
    assert done.returncode == STOPPED and "go on with: imgcls train resume=run" in done.stdout
    (run,) = server.runs.values()
    assert run.exit_code == STOPPED and run.summary["status"] == "stopped"


def test_a_server_that_takes_no_artifacts_holds_up_nothing(
    server: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unheard(given: dict[str, Any]) -> dict[str, Any]:
        raise ConnectionError

    monkeypatch.setattr(server, "CreateArtifact", unheard, raising=False)
    start = time.monotonic()
    done = imgcls("train", *QUICK, "logger.wandb.finish_timeout=2", "test=false")
    assert done.returncode == 0 and time.monotonic() - start < 60


def test_the_config_of_an_experiment() -> None:
    config = {"seed": 1, "run_dir": "/a", "data": {"root": "/b", "batch_size": 3}, "optimizer": {"lr": 0.1}}
    assert of_experiment(config) == {
        "seed": 1,
        "data": {"batch_size": 3},
        "optimizer": {"lr": 0.1},
        "run": {"run_dir": "/a", "data": {"root": "/b"}},
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ""),
        ("optimizer.lr=0.1,logger.wandb.mode=online,data.mean=[1,2]", "optimizer.lr=0.1,data.mean=[1,2]"),
        ("recovery.every_minutes=1,+logger.x=1,tags=[a,b]", ""),
    ],
)
def test_a_telling_name(name: str, expected: str) -> None:
    assert telling(name) == expected
