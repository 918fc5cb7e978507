"""Hydra's launchers as a sweep needs them: a job that dies, or a sweep that is stopped, harms no other job."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import TaskFunction
from omegaconf import DictConfig

from imgcls.engine.signals import SIGNALS, STOPPED, Stopped
from imgcls.errors import UserError
from imgcls.sweeps.jobs import Job

PATIENCE = 300  # seconds that a job has to end its step, or its validation, and to save


class Follower:
    """The task of a sweep in a process of joblib's. It stops, as a training does that gets SIGTERM, where the process
    that gives the jobs is asked to stop, or is gone.

    Args:
        task: what Hydra runs for each job.
        stop: a file, which is there from when all are to stop.
    """

    def __init__(self, task: TaskFunction, stop: Path) -> None:
        self.task, self.stop, self.leader = task, stop, os.getpid()

    def __call__(self, config: DictConfig) -> Any:
        if os.getpid() == self.leader:  # with n_jobs=1 joblib starts no process
            return self.task(config)
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
        ):  # between jobs they are for the leader; SIGNALS puts this back
            signal.signal(number, signal.SIG_IGN)
        ended = threading.Event()
        threading.Thread(target=self.watch, args=(ended,), daemon=True).start()
        try:
            if self.over():
                raise Stopped
            return self.task(config)
        except SystemExit as stopped:  # raised further, it would make joblib kill all others
            return UserError(f"it was stopped, with status {stopped.code}")
        finally:
            ended.set()
            if os.getppid() != self.leader:
                os._exit(STOPPED)  # joblib's loop would wait for the next job

    def over(self) -> bool:
        return os.getppid() != self.leader or self.stop.exists()

    def watch(self, ended: threading.Event) -> None:
        """Stops the job when all is over, and ends the process where the job doesn't come to its end."""
        end = float("inf")
        while not ended.wait(0.5):
            if self.over():
                end = min(end, time.monotonic() + PATIENCE)
                if SIGNALS.asked is None:
                    os.kill(os.getpid(), signal.SIGTERM)
                if time.monotonic() > end:
                    os._exit(STOPPED)


@contextmanager
def stoppable(launcher: Launcher, folder: Path) -> Iterator[None]:
    """Around all jobs of a sweep. A signal that asks to stop raises Stopped; with joblib it lets the jobs stop first.

    Args:
        folder: of the sweep.
    """
    SIGNALS.install()
    stop, done = folder.absolute() / f".stop-{os.getpid()}", threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if SIGNALS.asked is not None:
                stop.touch()

    thread = threading.Thread(target=watch, daemon=True)
    if type(launcher).__name__ == "JoblibLauncher":
        stop.unlink(missing_ok=True)  # of a process of the same number, long ago
        launcher.task_function = Follower(launcher.task_function, stop)  # type: ignore[attr-defined]
        SIGNALS.training = True  # that is, a signal is noted, and a second SIGINT ends all at once
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
        stop.unlink(missing_ok=True)
        SIGNALS.restore()


def outcomes(launcher: Launcher, jobs: list[Job]) -> list[Any]:
    """Runs jobs where the launcher says. Returns for each what the launcher brought: its exception where it brought
    none, and None where it had ended before another took the launch down.

    Of joblib's workers the first to die ends all. Then what they had begun is run again, each alone, and after that
    what was not begun: only the job that is to blame fails again.
    """
    if not jobs:
        return []
    overrides = [[*job.overrides, "resume=auto"] for job in jobs]
    try:
        return list(launcher.launch(overrides, initial_job_idx=jobs[0].number))
    except Exception as error:
        if len(jobs) == 1 or type(launcher).__name__ != "JoblibLauncher" or SIGNALS.asked is not None:
            return [error] * len(jobs)
    left = [job for job in jobs if not job.done()]
    suspects = [job for job in left if job.folder.exists()] or left
    found = {job.number: outcomes(launcher, [job])[0] for job in suspects}
    if rest := [job for job in left if job.number not in found]:
        found |= {job.number: result for job, result in zip(rest, outcomes(launcher, rest), strict=True)}
    return [found.get(job.number) for job in jobs]


def keep_apart(launcher: Launcher) -> None:
    """Makes Hydra's launchers for SLURM and Ray return a dead job's exception in its place. They would raise the first,
    and leave the others to run with nobody to wait for them."""

    def caught(wait: Callable[[Any], Any], returned: Callable[[Exception], Any]) -> Callable[[Any], Any]:
        def wait_for(job: Any) -> Any:
            try:
                return wait(job)
            except Exception as error:
                return returned(error)

        return wait_for

    if type(launcher).__name__ == "SlurmLauncher":
        import submitit

        submitit.SlurmJob.results = caught(submitit.Job.results, lambda error: [error])  # type: ignore[method-assign,assignment]
    elif type(launcher).__name__ == "RayLauncher":
        import ray
        from hydra_plugins.hydra_ray_launcher import _core

        _core.ray = SimpleNamespace(get=caught(ray.get, lambda error: error))  # type: ignore[assignment]
