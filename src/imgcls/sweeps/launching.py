"""Launching that keeps a job that dies, or a sweep that is stopped, from harming other jobs."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import TaskFunction
from omegaconf import DictConfig

from imgcls.engine.signals import SIGNALS, STOPPED, Stopped
from imgcls.errors import UserError
from imgcls.sweeps.jobs import Job
from imgcls.sweeps.private import KEEP_APART

LOCAL, JOBLIB = "BasicLauncher", "JoblibLauncher"  # kinds of Hydra's launchers
PATIENCE = 300  # seconds that a job has to end its step, or its validation, and to save


@contextmanager
def repeated(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Calls a function every few seconds, in a thread of its own."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Follower:
    """Runs Hydra's task in a process of joblib's. When the process that gives the jobs is asked to stop, and
    makes the file `stop`, or is gone, the task stops as a training does that gets SIGTERM."""

    def __init__(self, task: TaskFunction, stop: Path) -> None:
        self.task, self.stop, self.leader = task, stop, os.getpid()

    def __call__(self, config: DictConfig) -> Any:
        if os.getpid() == self.leader:  # with n_jobs=1 joblib starts no process
            return self.task(config)
        for number in (signal.SIGTERM, signal.SIGINT):  # between jobs they are for the leader
            signal.signal(number, signal.SIG_IGN)  # until SIGNALS.install
        self.end = float("inf")
        with repeated(self.watch, 0.5):
            try:
                if self.over():
                    raise Stopped
                return self.task(config)
            except SystemExit as stopped:  # raised further, it would make joblib kill all others
                return UserError(f"it was stopped, with status {stopped.code}")
            finally:
                if os.getppid() != self.leader:
                    os._exit(STOPPED)  # joblib's loop would wait for the next job

    def over(self) -> bool:
        return os.getppid() != self.leader or self.stop.exists()

    def watch(self) -> None:
        """Stops the job when the sweep is over, and ends the process if the job goes on for too long."""
        if self.over():
            self.end = min(self.end, time.monotonic() + PATIENCE)
            if SIGNALS.asked is None:
                os.kill(os.getpid(), signal.SIGTERM)
            if time.monotonic() > self.end:
                os._exit(STOPPED)


@contextmanager
def stoppable(launcher: Launcher, kind: str, folder: Path) -> Iterator[None]:
    """Makes a signal raise Stopped while jobs run here or on a cluster, and a dead job there end no other.
    Jobs of joblib's are told by a file in the sweep's folder instead, and end by themselves."""
    if kind in KEEP_APART:
        KEEP_APART[kind]()
    SIGNALS.install()
    stop = folder.absolute() / f".stop-{os.getpid()}"

    def tell() -> None:
        if SIGNALS.asked is not None:
            stop.touch()

    if kind == JOBLIB:
        stop.unlink(missing_ok=True)  # of an earlier process with the same number
        launcher.task_function = Follower(launcher.task_function, stop)  # type: ignore[attr-defined]
        SIGNALS.training = True  # a signal is noted, and a second SIGINT ends all at once
    try:
        with repeated(tell, 0.5) if kind == JOBLIB else nullcontext():
            yield
    finally:
        stop.unlink(missing_ok=True)
        SIGNALS.restore()


class Died(Exception):
    """A launch has raised: the process of one of its jobs is gone. Its message is the launcher's."""


def launch(launcher: Launcher, jobs: list[Job]) -> list[Any]:
    """Runs jobs with a launcher and returns for each what it returned, or the exception that ended it. Raises
    Died where the launcher raises."""
    overrides = [[*job.overrides, "resume=auto"] for job in jobs]
    try:
        results = launcher.launch(overrides, initial_job_idx=jobs[0].number)
        return [returned(result) for result in results]
    except Exception as error:
        raise Died(str(error) or type(error).__name__) from error


def outcomes(launcher: Launcher, kind: str, jobs: list[Job]) -> list[Any]:
    """Runs jobs with a launcher and returns a result for each: the launcher's, the exception that the
    launcher raised, or None for a job that had ended before another job's death ended the launch. The first
    of joblib's workers to die ends all. Then the jobs that had begun run again, each alone, and after them
    those that had not begun: only the job that is to blame fails again."""
    if not jobs:
        return []
    try:
        return launch(launcher, jobs)
    except Died as error:
        if len(jobs) == 1 or kind != JOBLIB or SIGNALS.asked is not None:
            return [error] * len(jobs)
    left = [job for job in jobs if not job.done()]
    suspects = [job for job in left if job.folder.exists()] or left
    found = {job.number: outcomes(launcher, kind, [job])[0] for job in suspects}
    if rest := [job for job in left if job.number not in found]:
        results = outcomes(launcher, kind, rest)
        found |= {job.number: result for job, result in zip(rest, results, strict=True)}
    return [found.get(job.number) for job in jobs]


def returned(result: Any) -> Any:
    """Returns what a job returned, or the exception that ended it."""
    if not isinstance(result, JobReturn):
        return result
    with redirect_stderr(StringIO()):  # Hydra prints the overrides of each failed job
        try:
            return result.return_value
        except Exception as error:
            return error
