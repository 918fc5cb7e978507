"""Loggers that can neither stop nor hold up a training."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from imgcls.loggers.epoch_csv import EpochCSV

log = logging.getLogger(__name__)


PATIENCE = 10.0  # seconds that a logger beside W&B's may take for what it is told


failed = set[str]()  # loggers of this run that are told nothing more


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
    logging.getLogger("urllib3.connectionpool").setLevel(
        logging.ERROR
    )  # each try of many; the outcome is said here

    def tell(method: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        if kind in failed:
            return
        with unharmed(kind):
            if isinstance(logger, WandbLogger):
                return method(*arguments, **keywords)
            answer: Queue[Exception | None] = Queue()
            Thread(
                target=answered, args=(answer, partial(method, *arguments, **keywords)), daemon=True
            ).start()
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
                "%s: %s; the run goes on without it",
                kind,
                " ".join(str(error).split()) or type(error).__name__,
            )
        failed.add(kind)
