"""Jobs of a sweep: their names and states, and how far the sweep is."""

import hashlib
import json
import re
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from imgcls.runs.record import write_text

LONGEST = 100  # bytes of a name: file systems take 255, and tables less
DONE = ("finished", "pruned")


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
        return self.status() in DONE

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
        done = sum(count[state] for state in DONE)
        self.start = self.start or (done, time.monotonic())
        words = [f"{count[state]} {state}" for state in ("running", "pruned", "failed") if count[state]]
        out = f"sweep {self.name}: {', '.join([f'{done} of {self.total} done', *words])}"
        if (best := self.best()) is not None and best.values is not None:
            out += f"; best {self.metric} {best.values[0]:.4f} (job {best.number})"
        left = self.total - done - count["failed"]
        if self.start[0] < done and left:
            seconds = round((time.monotonic() - self.start[1]) / (done - self.start[0]) * left)
            out += f"; {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
        return out

    def watch(self) -> None:
        """Prints the line if a job that runs in another process has ended since the last look."""
        running = [job for job in self.begun if job.state == "running"]
        for job in running:
            if (status := job.status()) in (*DONE, "failed"):
                job.state = status
        if any(job.state != "running" for job in running):
            print(self.line(), flush=True)


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
