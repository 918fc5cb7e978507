"""Searches with several trials at a time: none waits for a slower one."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cluster import Ray, Unavailable
from support.command import imgcls
from support.runs import TINY, jobs

from imgcls.engine.signals import STOPPED

pytestmark = pytest.mark.slow
NAP = """
import os, time
from pathlib import Path
import psutil
from lightning.pytorch import Callback

class Nap(Callback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_end(self, trainer, pl_module):
        time.sleep(self.seconds)
        Path(trainer.default_root_dir, "process.txt").write_text(str(psutil.Process().create_time()))
"""
SEARCH = (
    "train", "-m", *TINY[:2], "trainer.max_epochs=1", "logger=csv", "test=false", "sweep=random",
    "sweep.n_trials=24", "sweep.name=naps", "sweep.sampler.seed=1", "+callbacks.nap._target_=nap.Nap",
    "+callbacks.nap.seconds=1,2,3,4,5,6,7,8",
)  # fmt: skip


def span(folder: Path, fresh: bool) -> tuple[float, float]:
    """Returns when a job began, in a worker or with a fresh process for it, and when it ended."""
    begun = (folder / ".hydra" / "overrides.yaml").stat().st_mtime
    if fresh:
        begun = float((folder / "process.txt").read_text())
    return begun, (folder / "status.json").stat().st_mtime


def assert_nobody_waited(folder: Path, fresh: bool) -> None:
    """Checks the time of all jobs against half of their sum, with what it costs to start each: the median of
    the times between the end of one job and the begin of the next in its place."""
    spans = sorted(span(path, fresh) for path in jobs(folder))
    assert len(spans) == 24
    places, starts = [spans[0][1], spans[1][1]], []
    for begun, end in spans[2:]:
        place = places.index(min(places))
        starts.append(begun - places[place])
        places[place] = end
    lengths, start = [end - begun for begun, end in spans], statistics.median(starts)
    wall = max(end for _, end in spans) - spans[0][0]
    ideal = (sum(lengths) + len(starts) * start) / 2
    pairs = sum(map(max, lengths[::2], lengths[1::2])) + 11 * start
    print(f"\nwall {wall:.1f} s, ideal {ideal:.1f} s, in pairs {pairs:.1f} s; a start {start:.2f} s")
    assert wall < 1.1 * ideal


@pytest.fixture(autouse=True)
def nap(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nap.py").write_text(NAP)
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}")


def test_joblib() -> None:
    begun = time.monotonic()
    done = imgcls(*SEARCH, "launcher=joblib", timeout=500)
    assert done.returncode == 0 and "24 of 24 done" in done.stdout, done.stdout + done.stderr
    print(f"\nthe whole command: {time.monotonic() - begun:.1f} s")
    assert_nobody_waited(Path("runs/sweeps/naps"), fresh=False)


def test_ray_on_two_nodes() -> None:
    try:
        with Ray() as ray:
            address = f"hydra.launcher.ray.init.address={ray.address}"
            begun = time.monotonic()
            done = imgcls(*SEARCH, "launcher=ray", address, timeout=590)
            assert done.returncode == 0 and "24 of 24 done" in done.stdout, done.stdout + done.stderr
            print(f"\nthe whole command: {time.monotonic() - begun:.1f} s")
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert_nobody_waited(Path("runs/sweeps/naps"), fresh=True)


def test_a_worker_that_dies_takes_no_trial_along() -> None:
    Path("dies.py").write_text("import os\n\n\ndef Optimizer(params, **options):\n    os._exit(3)\n")
    done = imgcls(
        "train", "-m", *TINY, "launcher=joblib", "sweep=optuna", "sweep.n_trials=5", "sweep.name=dies",
        "sweep.sampler={_target_: optuna.samplers.BruteForceSampler,seed: 1}",
        "optimizer._target_=torch.optim.AdamW,dies.Optimizer,torch.optim.NAdam,torch.optim.RAdam",
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert "sweep dies: 3 of 4 done, 1 failed; best val/top1 0." in done.stdout
    for path in jobs(Path("runs/sweeps/dies")):
        ended = json.loads((path / "status.json").read_text())["status"]
        assert (ended == "finished") == ("dies" not in path.name)


@pytest.mark.parametrize(
    ("launcher", "number"), [("joblib", signal.SIGTERM), ("joblib", signal.SIGKILL), ("ray", signal.SIGTERM)]
)
def test_stopped_and_finished_by_the_same_command(launcher: str, number: signal.Signals) -> None:
    """Two trials train when it is stopped. They resume; all trials are those of a search never stopped."""
    command = (
        *SEARCH[:2], "logger=csv", "test=false", "trainer.max_epochs=40", f"launcher={launcher}",
        "sweep.n_jobs=2", "sweep=random", "sweep.n_trials=4", "sweep.name=stopped",
        "optimizer.lr=interval(1e-4,1e-2)",
    )  # fmt: skip
    folder = Path("runs/sweeps/stopped")
    with Path("out.txt").open("w") as out:
        leader = subprocess.Popen([sys.executable, "-m", "imgcls", *command], stdout=out, stderr=out)
    try:
        end = time.monotonic() + 200
        while len(list(folder.glob("*/metrics.csv"))) < 2:
            assert time.monotonic() < end and leader.poll() is None, Path("out.txt").read_text()
            time.sleep(0.1)
        leader.send_signal(number)
        assert leader.wait(100) == (STOPPED if number == signal.SIGTERM else -number)
    finally:
        leader.kill()
        leader.wait()
    done = imgcls(*command, timeout=500)
    assert done.returncode == 0 and "4 of 4 done" in done.stdout, done.stdout + done.stderr
    for path in jobs(folder):
        assert len((path / "metrics.csv").read_text().splitlines()) == 41
        resumed = json.loads((path / "environment.json").read_text()).get("resumed", [])
        assert len(resumed) == (path.name[0] in "01")
    again = imgcls(*command[:-2], "sweep.name=whole", command[-1], "launcher=local", timeout=500)
    names = [[path.name for path in jobs(Path("runs/sweeps") / name)] for name in ("stopped", "whole")]
    assert again.returncode == 0 and names[0] == names[1]
