"""EpochCSV logger; others that fail, or do not answer, can neither stop nor hold up a training."""

import csv
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imgcls.config.paths import takes_path

log = logging.getLogger(__name__)
# What says how and where a run is, and not what it tries
PLUMBING = (
    "run_dir",
    "cwd",
    "names",
    "job",
    "tags",
    "logger",
    "recovery",
    "resume",
    "overwrite",
    "test",
    "git",
)
PATIENCE = 10.0  # seconds that a logger other than W&B's may take for a call; W&B's has limits of its own


class EpochCSV(Logger):
    """Writes `metrics.csv` at the end of each epoch: one row with all values that were logged in it."""

    name, version = "csv", ""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}

    @rank_zero_only
    def keep(self, epochs: int) -> None:
        """Reads the rows of the first `epochs` epochs from the file: a run goes on after them."""
        self.rows = {}
        if epochs and self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = {int(r["epoch"]): r for r in csv.DictReader(file) if int(r["epoch"]) < epochs}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory has the whole config beside this file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if not name.startswith("test/")}
        if "epoch" not in values or len(values) < 2:
            return
        epoch = int(values.pop("epoch"))
        self.rows.setdefault(epoch, {}).update({"epoch": epoch, "step": step, **values})
        if "train/loss" in values:  # the last that is logged of an epoch
            self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:  # Lightning saves before it begins, too
            return
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))
        partial.replace(self.path)


def told(loggers: list[Logger], run_dir: Path, config: dict[str, Any]) -> list[Logger]:
    """Returns the loggers of a run, guarded, after it gave them the config: first metrics.csv, then those
    that took it, and W&B's in any case, whose run is still to be closed."""
    others = [logger for logger in loggers if not isinstance(logger, EpochCSV)]
    for logger in others:
        guard(logger)
        logger.log_hyperparams(of_experiment(config))
    working = [logger for logger in others if isinstance(logger, WandbLogger) or not has_failed(logger)]
    return [EpochCSV(str(run_dir)), *working]


def of_experiment(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's config for a comparison of runs: paths, and what says how and where it ran, are below
    the key `run`, so that what differs elsewhere is the experiment."""
    plumbing = {key: value for key, value in config.items() if key in PLUMBING}
    own: dict[str, Any] = {}
    for group, node in config.items():
        if group in PLUMBING:
            continue
        paths = [key for key in node if takes_path(f"{group}.{key}")] if isinstance(node, dict) else []
        if paths:
            plumbing[group] = {key: node[key] for key in paths}
        own[group] = {key: value for key, value in node.items() if key not in paths} if paths else node
    return own | {"run": plumbing}


def guard(logger: Logger) -> None:
    """Lets no error of a logger, and no wait, reach the training; after a failure it is told nothing more.
    Its methods are replaced, and not the object: callbacks ask for `isinstance(logger, WandbLogger)`."""
    # urllib3 would report each of many tries; `unharmed` reports the outcome.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

    def tell(method: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        if has_failed(logger):
            return
        call = partial(method, *arguments, **keywords)
        with unharmed(logger):
            call() if isinstance(logger, WandbLogger) else call_within(PATIENCE, call)

    for name in ("log_hyperparams", "log_metrics", "after_save_checkpoint", "save", "finalize"):
        setattr(logger, name, partial(tell, getattr(logger, name)))


def call_within(seconds: float, call: Callable[[], Any]) -> None:
    """Calls a function in a thread; raises its error, or TimeoutError if it has not ended in time."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]


@contextmanager
def unharmed(logger: Logger) -> Iterator[None]:
    """Catches what goes wrong in a logger: one warning, and the run goes on without it."""
    try:
        yield
    except Exception as error:
        if not has_failed(logger):
            name, reason = type(logger).__name__, " ".join(str(error).split()) or type(error).__name__
            log.warning("%s: %s; the run goes on without it", name, reason)
        vars(logger)["failed"] = True


def has_failed(logger: Logger) -> bool:
    return vars(logger).get("failed", False)
