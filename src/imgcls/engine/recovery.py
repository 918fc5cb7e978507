"""A training to its end: what it gets over by itself, and what it says where it can't."""

import errno
import logging
import pickle
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from imgcls.config.paths import shown
from imgcls.engine.checkpoint import no_room
from imgcls.engine.nonfinite import NonFiniteLoss
from imgcls.engine.run_directory import newest_whole
from imgcls.engine.signals import Stopped
from imgcls.errors import UserError
from imgcls.runs.checkpoints import unloadable

log = logging.getLogger(__name__)
MOST_SKIPS = 3
Pieces = tuple[Any, Any, Any]  # trainer, classifier, data


def fit(
    pieces: Pieces,
    rebuilt: Callable[[dict[str, Any]], Pieces],
    config: dict[str, Any],
    run_dir: Path,
    checkpoint: Path | None,
) -> Pieces:
    """Trains to the end; returns what was trained. After a fault that the config lets it get over, it goes back to the
    last checkpoint, with all built anew."""
    skipped: list[tuple[int, int]] = []
    while True:
        trainer, classifier, data = pieces
        try:
            fit_once(trainer, classifier, data, run_dir, checkpoint)
            return pieces
        except NonFiniteLoss as error:
            skips = config["trainer"].get("on_nonfinite") == "skip"
            if not skips or len(skipped) == MOST_SKIPS:
                if trainer.is_global_zero:
                    more = (
                        f"; {MOST_SKIPS} batches were left out" if skips else ", or trainer.on_nonfinite=skip"
                    )
                    raise NonFiniteLoss(f"{error}{more}") from error
                sys.exit(0)  # rank 0 says it
            skipped.append(error.batch)
            if trainer.is_global_zero:
                log.warning(
                    "%s\nback to the last checkpoint, to leave that batch out", str(error).partition(";")[0]
                )
        except torch.OutOfMemoryError as error:
            config = halved(config, error)
        pieces = rebuilt(config)
        pieces[0].loggers, pieces[1].skipped = trainer.loggers, [list(batch) for batch in skipped]
        checkpoint = newest_whole(run_dir / "checkpoints")


def halved(config: dict[str, Any], error: Exception) -> dict[str, Any]:
    """Returns a config of half the batch size and twice the accumulated batches, or raises UserError that says so."""
    size, times = config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]
    half = f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * times}"
    if config["trainer"].get("on_oom") != "halve" or size % 2:
        raise UserError(
            f"out of memory at data.batch_size={size}; try {half}, or in a single process trainer.on_oom=halve, which "
            "does that by itself"
        ) from error
    log.warning("out of memory at data.batch_size=%d: going on with %s", size, half)
    return {
        **config,
        "data": {**config["data"], "batch_size": size // 2},
        "trainer": {**config["trainer"], "accumulate_grad_batches": 2 * times},
    }


def fit_once(trainer: Any, classifier: Any, data: Any, run_dir: Path, checkpoint: Path | None) -> None:
    """Trains. One that was stopped from outside ends the process with the status that says so."""
    path, resume = None if checkpoint is None else str(checkpoint), shlex.quote(f"resume={shown(run_dir)}")
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=path, weights_only=True)
    except pickle.UnpicklingError as error:
        assert checkpoint is not None
        raise UserError(f"{shown(checkpoint)}: {unloadable(checkpoint, error)}") from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{shown(checkpoint or '')} is of another network than this code builds ({reason})"
        ) from error
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(no_room(run_dir / "checkpoints", error)) from error
    except Stopped:
        log.warning("stopped after step %d; go on with: imgcls train %s", trainer.global_step, resume)
        raise
    except SystemExit as ended:
        if ended.code == 0:
            raise  # a rank beside the first one, stopped as that was
        log.error("stopped at once; go on from the last checkpoint with: imgcls train %s", resume)
        sys.exit(130)
