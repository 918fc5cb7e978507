"""A training to its end: what it gets over by itself, and what it says where it can't."""

import errno
import logging
import pickle
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from imgcls.config.paths import shown
from imgcls.config.training import TrainerConfig
from imgcls.data.module import ImageDataModule
from imgcls.engine.checkpoint import no_room
from imgcls.engine.nonfinite import NonFiniteLoss
from imgcls.engine.run_directory import newest_whole
from imgcls.engine.signals import Stopped
from imgcls.errors import UserError
from imgcls.runs.checkpoints import unloadable
from imgcls.tasks.classification import ImageClassifier

log = logging.getLogger(__name__)
MOST_SKIPS = 3


class Training(NamedTuple):
    """What a training is made of."""

    trainer: Trainer
    classifier: ImageClassifier
    data: ImageDataModule


Rebuild = Callable[[int, int], Training]


def fit(
    training: Training, rebuild: Rebuild, config: TrainerConfig, run_dir: Path, checkpoint: Path | None
) -> Training:
    """Trains to the end, and returns what was trained. After a fault that `on_nonfinite` or `on_oom` allows, the
    training is built anew and goes on from the last checkpoint.

    Args:
        rebuild: builds the training for a batch size and a number of accumulated batches.
        checkpoint: to go on from.
    """
    skipped: list[tuple[int, int]] = []
    while True:
        batches = training.data.batch_size, training.trainer.accumulate_grad_batches
        try:
            fit_once(training, run_dir, checkpoint)
            return training
        except NonFiniteLoss as error:
            first = training.trainer.is_global_zero
            if config.on_nonfinite != "skip" or len(skipped) == MOST_SKIPS:
                if not first:
                    sys.exit(0)  # rank 0 says it
                left_out = f"; {MOST_SKIPS} batches were left out"
                raise NonFiniteLoss(
                    f"{error}{left_out if skipped else ', or trainer.on_nonfinite=skip'}"
                ) from error
            skipped.append(error.batch)
            if first:
                what = str(error).partition(";")[0]
                log.warning("%s\nback to the last checkpoint, to leave that batch out", what)
        except torch.OutOfMemoryError as error:
            batches = halved(*batches, config.on_oom == "halve", error)
        loggers = training.trainer.loggers
        training = rebuild(*batches)
        training.trainer.loggers, training.classifier.skipped = loggers, [list(batch) for batch in skipped]
        checkpoint = newest_whole(run_dir / "checkpoints")


def halved(size: int, accumulated: int, allowed: bool, error: Exception) -> tuple[int, int]:
    """Returns half the batch size and twice the accumulated batches; raises UserError if not allowed."""
    half = f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * accumulated}"
    if not allowed or size % 2:
        advice = f"try {half}, or in a single process trainer.on_oom=halve, which does that by itself"
        raise UserError(f"out of memory at data.batch_size={size}; {advice}") from error
    log.warning("out of memory at data.batch_size=%d: going on with %s", size, half)
    return size // 2, 2 * accumulated


def fit_once(training: Training, run_dir: Path, checkpoint: Path | None) -> None:
    """Trains. One that was stopped from outside ends the process with the status that says so."""
    path, resume = None if checkpoint is None else str(checkpoint), shlex.quote(f"resume={shown(run_dir)}")
    try:
        training.trainer.fit(training.classifier, datamodule=training.data, ckpt_path=path, weights_only=True)
    except pickle.UnpicklingError as error:
        assert checkpoint is not None
        raise UserError(f"{shown(checkpoint)}: {unloadable(checkpoint, error)}") from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        network = f"another network than this code builds ({reason})"
        raise UserError(f"{shown(checkpoint or '')} is of {network}") from error
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(no_room(run_dir / "checkpoints", error)) from error
    except Stopped:
        step = training.trainer.global_step
        log.warning("stopped after step %d; go on with: imgcls train %s", step, resume)
        raise
    except SystemExit as ended:
        if ended.code == 0:
            raise  # a rank beside the first one, stopped as that was
        log.error("stopped at once; go on from the last checkpoint with: imgcls train %s", resume)
        sys.exit(130)
