"""Loggers: a CSV with one row an epoch, and Weights & Biases that never asks and never stops a run."""

import csv
import logging
import netrc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imgcls.engine.signals import SIGNALS
from imgcls.errors import UserError

log = logging.getLogger(__name__)
UPLOAD = 600.0  # seconds that the upload of a checkpoint may take at the end
PATIENCE = 10.0  # seconds that a logger beside W&B's may take for what it is told
failed = set[str]()  # loggers of this run that are told nothing more


class EpochCSV(Logger):
    """Writes `metrics.csv`: one row an epoch with all that was logged of it, at the epoch's end."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def keep(self, epochs: int) -> None:
        """Takes over the rows of the first `epochs` epochs from the file, as they are: a run goes on after them."""
        self.rows = {}
        if epochs and self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = {int(row["epoch"]): row for row in csv.DictReader(file) if int(row["epoch"]) < epochs}  # type: ignore[misc]

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory has the whole config beside this file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if not name.startswith("test/")}
        if "epoch" not in values or len(values) < 2:
            return
        epoch = int(values.pop("epoch"))
        row = self.rows.setdefault(epoch, {})
        row |= {"epoch": epoch, "step": step, **values}
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
    """Tells the loggers the config. Returns those of the run: its `metrics.csv`, without which it can't be compared, and
    those that took the config, which can neither stop nor hold up the training."""
    others = [lasting(logger) for logger in loggers if not isinstance(logger, EpochCSV)]
    for logger in others:
        logger.log_hyperparams(config)
    return [EpochCSV(str(run_dir)), *(logger for logger in others if type(logger).__name__ not in failed)]


def lasting(logger: Logger) -> Logger:
    """Makes a logger one that never stops a training: all that Lightning tells it goes through `unharmed`, and one that
    has not answered within `PATIENCE` is told nothing more. (W&B has times of its own, and a process.)"""
    kind = type(logger).__name__
    failed.discard(kind)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each try of many; the outcome is said here

    def tell(method: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        if kind in failed:
            return
        with unharmed(kind):
            if isinstance(logger, WandbLogger):
                return method(*arguments, **keywords)
            answer: Queue[Exception | None] = Queue()
            Thread(target=answered, args=(answer, partial(method, *arguments, **keywords)), daemon=True).start()
            try:
                error = answer.get(timeout=PATIENCE)
            except Empty:
                raise TimeoutError(f"no answer within {PATIENCE:g} s") from None
            if error is not None:
                raise error

    for name in ("log_hyperparams", "log_metrics", "after_save_checkpoint", "save", "finalize"):
        setattr(logger, name, partial(tell, getattr(logger, name)))
    return logger


def answered(answer: "Queue[Exception | None]", call: Callable[[], Any]) -> None:
    """Makes a call and puts its error, or None, into the queue."""
    try:
        call()
        answer.put(None)
    except Exception as error:
        answer.put(error)


@contextmanager
def unharmed(kind: str = "WandbLogger") -> Iterator[None]:
    """Around what a logger is told. When it fails, a line says so, once, and the run goes on without it."""
    try:
        yield
    except Exception as error:
        if kind not in failed:
            log.warning(
                "%s: %s; the run goes on without it", kind, " ".join(str(error).split()) or type(error).__name__
            )
        failed.add(kind)


def wandb_logger(
    save_dir: str,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    timeout: float = 6.0,
    finish_timeout: float = 8.0,
    log_model: bool = False,
    **options: Any,
) -> Logger:
    """Returns the logger of Weights & Biases, its run begun.

    Args:
        mode: "auto": what WANDB_MODE says, else online where there is a key, else offline.
        timeout: seconds to wait for the server before the run goes on offline.
        finish_timeout: seconds to wait at the end for what is not uploaded yet; with `log_model` at least 600.
        log_model: keep the best checkpoint as an artifact of the run.
        options: to `wandb.init`: project, group, name, tags, notes, job_type, id, resume.
    """
    import wandb

    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE", "")
        mode = chosen if chosen in ("online", "offline", "disabled") else "online" if has_key() else "offline"  # type: ignore[assignment]
    unknown = set(options) - {"project", "group", "name", "tags", "notes", "job_type", "id", "resume", "entity"}
    if unknown:
        raise UserError(
            f"logger.wandb.{min(unknown)}: expected project, entity, group, name, tags, notes, job_type, id or resume"
        )
    if getattr(rank_zero_only, "rank", 0) != 0:
        return WandbLogger(save_dir=save_dir)
    before = Path(save_dir) / "wandb" / "latest-run"
    if before.exists():  # the run goes on
        options = {"id": before.resolve().name.rpartition("-")[2], "resume": "allow", **options}
    patience = max(finish_timeout, UPLOAD) if log_model else finish_timeout
    settings = wandb.Settings(init_timeout=timeout, finish_timeout=patience, finish_timeout_raises=True, silent=True)
    if "wandb.sdk.launch" not in sys.modules:  # then there are no inputs of W&B Launch: to look would import it, 0.7 s
        wandb.Run._detect_and_apply_job_inputs = lambda run: None  # type: ignore
    begin: Any = partial(wandb.init, dir=save_dir, settings=settings, reinit="finish_previous", **options)
    for attempt, otherwise in {mode: "offline", "offline": "disabled"}.items():
        try:
            run = begin(mode=attempt)
            break
        except Exception as error:  # of many types: no network, a key that is none, a full disk
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("Weights & Biases: %s; logging to it goes on %s", reason, otherwise)
    else:
        run = begin(mode="disabled")
    with suppress(AttributeError):  # else each import of pandas or the like speaks to a process that may be gone
        run._unregister_telemetry_import_hooks(run.id)
    with unharmed():
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    logger = WandbLogger(save_dir=save_dir, experiment=run)
    logger.keeps_best = log_model  # type: ignore[attr-defined]  # Lightning's own log_model refuses to be offline
    return logger


def close_wandb(status: int, word: str) -> None:
    """Ends the W&B run, if there is one, with its status: without a code a failed run would show as finished."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is not None:
        with unharmed():
            run.summary["status"] = word
            if word == "pruned":
                run.tags = (*run.tags, word)
            if word == "stopped" and SIGNALS.asked != signal.SIGINT:  # by the machine: W&B's agent starts it again
                run.mark_preempting()
            run.finish(exit_code=status)
    if "WandbLogger" in failed:
        with suppress(Exception):  # or its process is looked for again when this one ends
            sys.modules["wandb"].teardown(status)


def log_checkpoint(run: Any, path: str) -> None:
    """Keeps a checkpoint as the artifact `<id of the run>-best`."""
    import wandb

    artifact = wandb.Artifact(f"{run.id}-best", type="model")
    artifact.add_file(path)
    run.log_artifact(artifact, aliases=["best"])


def has_key() -> bool:
    """Whether credentials are at hand; never asks for them and never talks to the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any(
            entry is not None
            for entry in (netrc.netrc().authenticators(host) for host in netrc.netrc().hosts if "wandb" in host)
        )
    except (OSError, netrc.NetrcParseError):
        return False
