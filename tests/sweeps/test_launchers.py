"""Sweeps that are stopped or killed, and several that share a folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.command import imgcls
from support.runs import TINY, jobs, same

from imgcls.engine.signals import STOPPED
from imgcls.sweeps.jobs import Job

LEADER = """
import os, time
from pathlib import Path
from imgcls.sweeps.launching import Follower
from imgcls.engine.signals import SIGNALS

def task(config):
    SIGNALS.install()
    SIGNALS.training = True
    with open("begun", "a") as file:
        file.write(f"{os.getpid()}\\n")
    try:
        while SIGNALS.asked is None:
            time.sleep(0.05)
        Path("saved").touch()
        SIGNALS.stop()
    finally:
        SIGNALS.restore()

follower = Follower(task, Path("stop"))
if (child := os.fork()) == 0:
    Path("answers").write_text(f"{follower(None)}; {follower(None)}")
    os._exit(0)
os.waitpid(child, 0)
"""


def wait_for(what: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def status(folder: Path) -> str | None:
    return Job(0, [], folder).status()


@pytest.mark.parametrize("end", ["asked", "killed"])
def test_a_worker_stops_with_its_leader(end: str) -> None:
    """In good order; and it begins no other job, where another is waiting."""
    leader = subprocess.Popen([sys.executable, "-c", LEADER])
    try:
        wait_for(lambda: leader.poll() is not None or Path("begun").exists())
        time.sleep(0.2)
        Path("stop").touch() if end == "asked" else leader.kill()
        (worker,) = map(int, Path("begun").read_text().split())
        wait_for(lambda: not alive(worker), 20)
        assert Path("saved").exists() and len(Path("begun").read_text().split()) == 1
        if end == "asked":
            stopped = "it was stopped, with status 75"
            assert Path("answers").read_text() == f"{stopped}; {stopped}"
        assert Path("answers").exists() == (end == "asked")
    finally:
        leader.kill()
        leader.wait()


def test_a_job_that_was_killed_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text(json.dumps({"status": "running", "seconds": 3}))
    with FileLock(tmp_path / ".lock"):  # another process trains there
        Job(0, [], tmp_path).mark_stopped()
    assert json.loads(path.read_text())["status"] == "running"
    Job(0, [], tmp_path).mark_stopped()
    assert json.loads(path.read_text()) == {
        "status": "stopped",
        "seconds": 3,
        "error": "killed with the sweep",
    }


def test_a_stopped_grid_says_how_to_go_on(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls.callbacks.step_curves import StepCurves

    def stop(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1 and Path(trainer.default_root_dir).name.startswith("1_"):
            signal.raise_signal(signal.SIGTERM)

    command = ("train", "-m", *TINY, "seed=0,1,2")
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(StepCurves, "on_train_batch_start", stop, raising=False)
        patched.setattr(sys, "orig_argv", ["python", "-m", "imgcls", *command])
        here(*command)
    assert ended.value.code == STOPPED and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    (folder,) = Path("runs/sweeps").iterdir()
    assert [status(job) for job in jobs(folder)] == ["finished", "stopped"]
    more = f"hydra.sweep.dir={folder}"
    shown = capsys.readouterr().out
    assert f"sweep {folder.name}: stopped; go on with the same command and {more}\n" in shown
    alone = f"(this job alone: imgcls train resume={folder}/1_seed=1)"
    assert f"go on with: imgcls {' '.join(command)} {more} {alone}" in shown
    here(*command, more)
    assert f"sweep {folder.name}: 3 of 3 done; best" in capsys.readouterr().out


def test_jobs_that_another_process_runs(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three, it finishes one and is killed in another; and it begins one as this process does."""
    command = ("train", "-m", *TINY, "seed=0,1,2", "sweep.name=shared")
    here(*command)
    folders = jobs(Path("runs/sweeps/shared"))
    done = [Path(shutil.copytree(folder, folder.name)) for folder in folders]
    for folder in folders:
        shutil.rmtree(folder)
    locks = [FileLock(folder / ".lock", thread_local=False) for folder in (folders[0], folders[2])]
    for lock in locks:
        Path(lock.lock_file).parent.mkdir()
        lock.acquire()
    seen, really = (
        iter([True, False, False]),
        Job.in_use,
    )  # the lock of the third is taken after it was looked at
    monkeypatch.setattr(Job, "in_use", lambda job: next(seen, None) if not job.done() else really(job))

    def other() -> None:
        wait_for(lambda: status(folders[1]) == "finished")
        monkeypatch.setattr(Job, "in_use", really)
        time.sleep(3)
        shutil.copytree(done[0], folders[0], dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=other)
    capsys.readouterr()
    thread.start()
    here(*command)
    thread.join()
    shown = capsys.readouterr().out
    assert "failed" not in shown and "waits for jobs that another process runs" in shown
    assert "sweep shared: 3 of 3 done; best" in shown and "job 0_" not in shown
    assert [status(folder) for folder in folders] == ["finished"] * 3
    assert all(same(one, other) for one, other in zip(done, folders, strict=True))


@pytest.mark.slow
def test_two_shells_share_a_named_grid() -> None:
    """Each job is trained once, and both commands end well."""
    command = (*TINY, "seed=0,1,2,3", "sweep.name=shared", "trainer.max_epochs=20")
    start = [sys.executable, "-m", "imgcls", "train", "-m", *command]
    both = [
        subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    shown = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    assert all("4 of 4 done" in text and "failed" not in text for text in shown)
    for folder in jobs(Path("runs/sweeps/shared")):
        assert status(folder) == "finished" and len((folder / "metrics.csv").read_text().splitlines()) == 21
        assert "resumed" not in json.loads((folder / "environment.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["SIGTERM", "SIGINT", "SIGINT to all", "SIGKILL"])
def test_joblib_workers_end_with_the_sweep(way: str) -> None:
    """As if stopped, so that the same command goes on, at once."""
    command = (
        *TINY[:1],
        "logger=csv",
        "test=false",
        "trainer.max_epochs=40",
        "seed=0,1,2",
        "launcher=joblib",
    )
    start = [sys.executable, "-m", "imgcls", "train", "-m", *command, "sweep.name=mine"]
    with Path("out.txt").open("w") as out:
        leader = subprocess.Popen(start, stdout=out, stderr=out, start_new_session=True)
    folder = Path("runs/sweeps/mine")
    try:
        wait_for(lambda: len(list(folder.glob("*/metrics.csv"))) == 2)
        number = signal.Signals[way.partition(" ")[0]]
        os.killpg(leader.pid, number) if "all" in way else leader.send_signal(number)
        assert leader.wait(100) == (STOPPED if number != signal.SIGKILL else -number), Path(
            "out.txt"
        ).read_text()
        if number != signal.SIGKILL:
            assert "sweep mine: stopped; go on with the same command\n" in Path("out.txt").read_text()
            assert [status(job) for job in jobs(folder)[:2]] == ["stopped", "stopped"]
        done = imgcls(
            "train", "-m", *command, "sweep.name=mine", timeout=500
        )  # waits for those that still save
        assert done.returncode == 0 and "3 of 3 done" in done.stdout, done.stdout + done.stderr
        assert [status(job) for job in jobs(folder)] == ["finished"] * 3
        for job in jobs(folder)[:2]:
            assert len(json.loads((job / "environment.json").read_text())["resumed"]) == 1
            assert len((job / "metrics.csv").read_text().splitlines()) == 41
    finally:
        leader.kill()
        leader.wait()
