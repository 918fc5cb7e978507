"""Jobs of a sweep: their names and states, how far the sweep is, and launching that keeps a job that dies, or
a sweep that is stopped, from harming other jobs."""

import hashlib
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import TaskFunction
from omegaconf import DictConfig

from imgcls.engine.signals import SIGNALS, STOPPED, Stopped
from imgcls.errors import UserError
from imgcls.runs.record import write_text
from imgcls.sweeps.private import KEEP_APART

LONGEST = 100  # bytes of a name: file systems take 255, and tables less
LOCAL, JOBLIB = "BasicLauncher", "JoblibLauncher"  # kinds of Hydra's launchers
PATIENCE = 300  # seconds that a job has to end its step, or its validation, and to save


@dataclass
class Job:
    """One training of a sweep."""

    number: int
    overrides: list[str]
    folder: Path
    state: str = "running"  # then finished, failed or pruned
    values: list[float] | None = None  # of the metrics that are optimised
    error: str = ""

    def status(self) -> str | None:
        """Returns the state that the training itself has written; None if there is none."""
        try:
            return str(json.loads((self.folder / "status.json").read_text())["status"])
        except (OSError, ValueError, KeyError):
            return None

    def done(self) -> bool:
        return self.status() in ("finished", "pruned")

    def in_use(self) -> bool:
        """Tells whether a process trains in its folder, and holds its lock (engine.run_directory.claim)."""
        path = self.folder / ".lock"
        try:
            with FileLock(path, blocking=False) if path.exists() else nullcontext():
                return False
        except Timeout:
            return True

    def mark_stopped(self) -> None:
        """Writes into status.json that the job was stopped, if its process was killed before that."""
        if self.status() == "running" and not self.in_use():
            path = self.folder / "status.json"
            facts = json.loads(path.read_text()) | {"status": "stopped", "error": "killed with the sweep"}
            write_text(path, json.dumps(facts, indent=2) + "\n")


@dataclass
class Jobs:
    """All jobs of a sweep that have begun."""

    name: str
    metric: str
    direction: str  # "min" or "max"
    total: int = 0
    begun: list[Job] = field(default_factory=list)
    start: tuple[int, float] | None = None  # jobs that were done when this process began, and when that was

    def best(self) -> Job | None:
        """Returns the job with the best value of the first metric."""
        best = min if self.direction == "min" else max
        finished = [job for job in self.begun if job.state == "finished" and job.values]
        return best(finished, key=lambda job: job.values[0], default=None)  # type: ignore[index]

    def line(self) -> str:
        """Returns how many jobs are done, running and failed, the best so far, and the time left."""
        count = Counter(job.state for job in self.begun)
        done = len(self.begun) - count["running"]
        self.start = self.start or (done, time.monotonic())
        words = [f"{count[state]} {state}" for state in ("running", "pruned", "failed") if count[state]]
        out = f"sweep {self.name}: {', '.join([f'{done} of {self.total} done', *words])}"
        if (best := self.best()) is not None and best.values is not None:
            out += f"; best {self.metric} {best.values[0]:.4f} (job {best.number})"
        if self.start[0] < done < self.total:
            seconds = round((time.monotonic() - self.start[1]) / (done - self.start[0]) * (self.total - done))
            out += f"; {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
        return out

    def watch(self) -> None:
        """Prints the line if a job that runs in another process has ended since the last look."""
        running = [job for job in self.begun if job.state == "running"]
        for job in running:
            if (status := job.status()) in ("finished", "pruned", "failed"):
                job.state = status
        if any(job.state != "running" for job in running):
            print(self.line(), flush=True)


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


def job_name(overrides: list[str], excluded: set[str]) -> str:
    """Returns overrides as the name of a folder. If it is too long, keys lose what comes before their last
    dot; if it still is, it is cut, with a hash."""
    parts = "|".join(map(re.escape, excluded)) or "$."
    kept = [o for o in overrides if not re.match(rf"\+*({parts})[.=]", o)]
    kept = [re.sub(r"\d+\.\d{5,}(e[-+]?\d+)?", lambda number: f"{float(number[0]):.4g}", o) for o in kept]
    for names in (kept, [re.sub(r"^[^=]*\.", "", o) for o in kept]):
        name = re.sub(r"[^\w.=,+~-]+", "_", ",".join(names))
        if len(name.encode()) <= LONGEST:
            return name
    return f"{name.encode()[: LONGEST - 9].decode(errors='ignore')}-{short_hash(','.join(overrides))}"


def short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


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


def outcomes(launcher: Launcher, kind: str, jobs: list[Job]) -> list[Any]:
    """Runs jobs with a launcher and returns a result for each: the launcher's, the exception that the
    launcher raised, or None for a job that had ended before another job's death ended the launch. The first
    of joblib's workers to die ends all. Then the jobs that had begun run again, each alone, and after them
    those that had not begun: only the job that is to blame fails again."""
    if not jobs:
        return []
    overrides = [[*job.overrides, "resume=auto"] for job in jobs]
    try:
        results = launcher.launch(overrides, initial_job_idx=jobs[0].number)
        return [returned(result) for result in results]
    except Exception as error:
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
