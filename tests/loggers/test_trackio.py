"""trackio: a run that is killed goes on in the same run, rows once; its database is read as it is."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import imgcls

pytest.importorskip("trackio")
WORDS = ("trainer=cpu", "trainer.max_epochs=3", "trainer.log_every_n_steps=5", "hydra.run.dir=mine/run")


def rows() -> list[tuple[str, int, dict[str, Any]]]:
    """Returns the rows of the only project: run, step, values."""
    with sqlite3.connect("trackio/imgcls.db") as base:
        found = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    return [(name, step, json.loads(values)) for name, step, values in found]


def test_a_killed_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(Path("trackio").absolute()))
    Path("killer.py").write_text(
        "import os, signal, time\n"
        "from imgcls.tasks.task import Task\n"
        "step = Task.training_step\n"
        "def training_step(self, batch, batch_idx):\n"
        "    if self.trainer.global_step == 32:\n"
        "        time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)\n"  # trackio writes twice a second
        "    return step(self, batch, batch_idx)\n"
        "Task.training_step = training_step\n"
        "from imgcls.__main__ import main\n"
        "main()\n"
    )
    words = ["train", *WORDS, "logger=[csv,trackio]", "recovery.flush_seconds=0"]
    killed = subprocess.run([sys.executable, "killer.py", *words], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    before = rows()
    assert [step for _, step, values in before if "train/loss_step" in values] == [5, 10, 15, 20, 25, 30]
    done = imgcls("train", "resume=mine/run")
    assert done.returncode == 0 and "trackio show --project imgcls" in done.stdout
    found = rows()
    assert found[: len(before)] == before and {name for name, _, _ in found} == {"mine/run"}
    keys = [(step, *sorted(values)) for _, step, values in found]
    assert len(set(keys)) == len(keys)
    steps = [step for _, step, values in found if "train/loss_step" in values]
    assert steps == list(range(5, 61, 5))
    assert len([1 for _, _, values in found if "val/top1" in values]) == 3 and "test/top1" in found[-1][2]
    with sqlite3.connect("trackio/imgcls.db") as base:
        ((config,),) = base.execute("select config from configs").fetchall()
    assert json.loads(config)["optimizer"]["lr"] == 0.002
