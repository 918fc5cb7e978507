"""Runner: runs the jobs of a sweep, and settles each by what it returned or by what it left in its folder."""

import gc
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import Any

from hydra.plugins.launcher import Launcher

from imgcls.config.paths import shown
from imgcls.engine.signals import SIGNALS
from imgcls.errors import CodeFailed, InUse, UserError, one_line
from imgcls.runs.run_files import optimised
from imgcls.sweeps.jobs import DONE, Job, Jobs
from imgcls.sweeps.launching import JOBLIB, LOCAL, Died, launch, outcomes, repeated
from imgcls.sweeps.private import RAY, SUBMITTING, capacity

WAIT = 2.0  # seconds between two looks at jobs that other processes run


class Runner:
    """Runs jobs with a launcher, whose class says its `kind`. `n_jobs`: at a time, if that is limited."""

    def __init__(
        self, launcher: Launcher, kind: str, jobs: Jobs, metrics: list[str], n_jobs: int | None
    ) -> None:
        self.launcher, self.kind, self.jobs, self.metrics, self.n_jobs = launcher, kind, jobs, metrics, n_jobs
        self.local = kind == LOCAL
        self.mistakes = list[Job]()  # jobs with a mistake in their config
        self.trained = False  # another job has got beyond its config

    def run(self, left: list[Job]) -> None:
        """Runs jobs. A job that another process runs is run here only if that process doesn't finish it.
        Raises UserError: the first of them has a mistake in its config."""
        at_once = 1 if self.local else self.n_jobs or len(left)
        waits = False
        while left:
            SIGNALS.install()  # a job that ran in this process has given them back
            if SIGNALS.asked is not None:
                SIGNALS.stop()
            free = [job for job in left if job.done() or not job.in_use()][:at_once]
            if free:
                self.launch(free)
                self.end_if_hopeless()
            elif not waits:
                waits = True
                print(f"{self.jobs.line()}; waits for jobs that another process runs", flush=True)
            left = [job for job in left if job.state == "running"]
            if free and left:
                print(self.jobs.line(), flush=True)
            time.sleep(0 if free else WAIT)

    def launch(self, jobs: list[Job]) -> None:
        """Runs those of the jobs that are not done, and settles all of them."""
        self.jobs.begun += [job for job in jobs if job not in self.jobs.begun]
        left = [job for job in jobs if not job.done()]
        if left and self.local:
            print(f"\njob {left[0].folder.name}", flush=True)
        with nullcontext() if self.local else repeated(self.jobs.watch, WAIT):
            results = outcomes(self.launcher, self.kind, left)
        if SIGNALS.asked is not None:
            SIGNALS.stop()
        if self.local and not gc.get_freeze_count():
            gc.freeze()  # what the first job imported stays: looking through it takes 0.15 s a job
        found = {job.number: result for job, result in zip(left, results, strict=True)}
        for job in jobs:
            self.settle(job, found.get(job.number))

    def settle(self, job: Job, result: Any = None) -> None:
        """Sets the state and the values of a job, from its result or from its folder."""
        if isinstance(result, InUse):
            job.state = "running"  # in another process
            return
        job.state = "pruned" if job.status() == "pruned" else "finished"
        if isinstance(result, Exception) and not job.done():
            job.state, job.error = "failed", one_line(UserError(result)) or type(result).__name__
            code = isinstance(result, CodeFailed)
            if isinstance(result, UserError) and not code and job.status() is None:
                self.mistakes.append(job)
            if not self.hopeless():
                log_file = shown(job.folder / "run.log")
                print(f"job {job.number} failed: {job.error}; see {log_file}", flush=True)
        elif job.state == "finished":
            values = result if isinstance(result, list | float) else optimised(job.folder, self.metrics)
            job.values = [values] if isinstance(values, float) else values
        self.trained = self.trained or job not in self.mistakes

    def hopeless(self) -> bool:
        """Tells whether all jobs that have ended have a mistake in their config: the others have it, too."""
        return bool(self.mistakes) and not self.trained and not any(j.state in DONE for j in self.jobs.begun)

    def end_if_hopeless(self) -> None:
        if self.hopeless():
            others = "; the other jobs were not begun" if self.jobs.total > len(self.mistakes) else ""
            raise UserError(f"{self.mistakes[0].error}{others}")

    def keep_going(self, begin: Callable[[], Job | None], end: Callable[[Job], None]) -> None:
        """Runs the jobs of a search: keeps as many as the launcher can run at once, and asks `begin` for the
        next when one has ended and was told to `end`. No job waits for a slower one."""
        if self.local or self.slots() == 1:
            while job := begin():
                self.run([job])
                end(job)
            return
        threads = list[threading.Thread]()
        try:
            self.keep_full(begin, end, threads)
        finally:
            if self.kind == RAY:  # its threads look for a signal
                for thread in threads:
                    thread.join(5)
        if SIGNALS.asked is not None:
            SIGNALS.stop()
        self.end_if_hopeless()

    def keep_full(
        self, begin: Callable[[], Job | None], end: Callable[[Job], None], threads: list[threading.Thread]
    ) -> None:
        """Gives each job of `keep_going` a thread, as soon as there is room for it."""
        ended, running, suspects = SimpleQueue[tuple[Job, Any]](), dict[int, Job](), list[Job]()
        while True:
            SIGNALS.install()  # Ray takes them when it starts
            stops = SIGNALS.asked is not None or self.hopeless()
            while not stops and not suspects and len(running) < self.slots() and (job := begin()):
                running[job.number] = job
                threads.append(threading.Thread(target=self.attempt, args=(job, ended), daemon=True))
                threads[-1].start()
            if not running and not suspects:
                break
            if not running:  # a worker of joblib's has died, and all others with it
                self.run([job := suspects.pop(0)])
                end(job)
                continue
            try:
                job, result = ended.get(timeout=WAIT)  # no longer: a signal is seen between two waits
            except Empty:
                continue
            others = bool(running.keys() - {job.number}) or bool(suspects)
            del running[job.number]
            if SIGNALS.asked is not None:
                continue
            if self.kind == JOBLIB and isinstance(result, Died) and others and not job.done():
                suspects.append(job)
                continue
            self.settle(job, result)
            end(job)

    def attempt(self, job: Job, ended: "SimpleQueue[tuple[Job, Any]]") -> None:
        """Runs one job in a thread of its own, with a launch of its own, and puts down what it came to."""
        try:
            while isinstance(result := self.once(job), InUse) and SIGNALS.asked is None:
                time.sleep(WAIT)
        except Exception as error:
            result = error
        ended.put((job, result))

    def once(self, job: Job) -> Any:
        """Runs a job that is not done, and returns the result; InUse where another process runs it."""
        if job.done():
            return None
        if job.in_use():
            return InUse()
        with SUBMITTING.of(self.kind):
            return launch(self.launcher, [job])[0]

    def slots(self) -> int:
        """Returns how many jobs of a search run at a time."""
        can = capacity(self.kind, self.launcher)
        if self.kind == JOBLIB:
            return min(self.n_jobs or can, can)
        return self.n_jobs or can
