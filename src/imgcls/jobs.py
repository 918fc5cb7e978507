"""The jobs of a sweep: what each is called, what became of it, and how far they all are."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.plugins.launcher import Launcher

LONGEST = 100  # bytes of a name: file systems take 255, and tables less


@dataclass
class Job:
    """One training of a sweep."""

    number: int
    overrides: list[str]
    folder: Path
    state: str = "running"  # then finished, failed or pruned
    values: list[float] | None = None  # of the metrics that are optimised
    error: str = ""

    def has_begun(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    def status(self) -> str | None:
        """Returns what the training itself says of its state."""
        try:
            return str(json.loads((self.folder / "status.json").read_text())["status"])
        except (OSError, ValueError, KeyError):
            return None


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
        sign = -1 if self.direction == "min" else 1
        finished = [job for job in self.begun if job.state == "finished" and job.values]
        return max(finished, key=lambda job: sign * job.values[0], default=None)  # type: ignore[index]

    def failed(self) -> list[str]:
        return [job.folder.name for job in self.begun if job.state == "failed"]

    def line(self) -> str:
        """Returns what is done, running and failed, the best so far, and the time left."""
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

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around jobs that run elsewhere: prints the line whenever one of them has ended."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(2.0):
                ended = [
                    j for j in self.begun if j.state == "running" and j.status() in ("finished", "pruned", "failed")
                ]
                for job in ended:
                    job.state = str(job.status())
                if ended:
                    print(self.line(), flush=True)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def outcomes(launcher: Launcher, jobs: list[Job]) -> list[Any]:
    """Runs jobs where the launcher says. Returns for each what the launcher brought: its exception where it brought
    none, and None where it had ended before another took the launch down.

    Of joblib's workers the first to die ends all. Then what they had begun is run again, each alone, and after that
    what was not begun: only the job that is to blame fails again.
    """
    overrides = [[*job.overrides, *(["resume=auto"] if job.has_begun() else [])] for job in jobs]
    try:
        return list(launcher.launch(overrides, initial_job_idx=jobs[0].number))
    except Exception as error:
        if len(jobs) == 1 or type(launcher).__name__ != "JoblibLauncher":
            return [error] * len(jobs)
    left = [job for job in jobs if job.status() not in ("finished", "pruned")]
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


def job_name(overrides: list[str], excluded: set[str]) -> str:
    """Returns overrides as the name of a folder. Where it is too long, keys lose what comes before their last dot, and
    where it still is, it is cut and ends in a hash."""
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
