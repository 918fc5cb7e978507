"""A training to its end: what it gets over by itself, what it says where it can't, and finite checks."""

import errno
import logging
import pickle
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from imgcls.config.paths import shown
from imgcls.config.training import RecoveryConfig
from imgcls.data.module import ImageDataModule
from imgcls.engine.checkpoint import no_room
from imgcls.engine.run_directory import how_to_go_on, newest_whole
from imgcls.engine.signals import Stopped
from imgcls.errors import UserError
from imgcls.processes import Agreement, gathered
from imgcls.runs.checkpoints import newest, not_finite, unloadable
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
MOST_SKIPS = 3


class Training(NamedTuple):
    """What a training is made of."""

    trainer: Trainer
    task: Task
    data: ImageDataModule


Rebuild = Callable[[], Training]


def fit(
    training: Training, rebuild: Rebuild, config: RecoveryConfig, run_dir: Path, checkpoint: Path | None
) -> Training:
    """Trains to the end, and returns what was trained. After a loss that is not finite, `rebuild` builds the
    training anew, where `on_nonfinite` allows it, and it goes on from the last checkpoint. Raises UserError:
    the device has no memory for a step."""
    skipped: list[tuple[int, int]] = []
    while True:
        try:
            fit_once(training, run_dir, checkpoint)
            return training
        except NonFiniteLoss as error:
            first = training.trainer.is_global_zero
            if config.on_nonfinite != "skip" or len(skipped) == MOST_SKIPS:
                if not first:
                    sys.exit(0)  # rank 0 says it
                more = (
                    f"; {MOST_SKIPS} batches were left out" if skipped else ", or recovery.on_nonfinite=skip"
                )
                raise NonFiniteLoss(f"{error}{more}") from error
            skipped.append(error.batch)
            if first:
                what = str(error).partition(";")[0]
                log.warning("%s\nback to the last checkpoint, to leave that batch out", what)
        except torch.OutOfMemoryError as error:
            size, accumulated = training.data.batch_size, training.trainer.accumulate_grad_batches
            half = f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * accumulated}"
            advice = f"try {half}, or find the size with tune=batch_size"
            raise UserError(f"out of memory at data.batch_size={size}; {advice}") from error
        loggers = training.trainer.loggers
        training = rebuild()
        training.trainer.loggers, training.task.skipped = loggers, [list(batch) for batch in skipped]
        checkpoint = newest_whole(run_dir / "checkpoints")


def fit_once(training: Training, run_dir: Path, checkpoint: Path | None) -> None:
    """Trains. One that was stopped from outside ends the process with the status that says so."""
    path, how = None if checkpoint is None else str(checkpoint), how_to_go_on(run_dir)
    try:
        training.trainer.fit(training.task, datamodule=training.data, ckpt_path=path, weights_only=True)
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
        log.warning("stopped after step %d; go on with: %s", step, how)
        raise
    except SystemExit as ended:
        if ended.code == 0:
            raise  # a rank beside the first one, stopped as that was
        log.error("stopped at once; go on from the last checkpoint with: %s", how)
        sys.exit(130)


class NonFiniteLoss(UserError):
    """The loss, or the weights after it, became infinite or NaN in the batch `(epoch, batch index)`."""

    batch: tuple[int, int]


class FiniteCheck:
    """Looks at each loss on the device, and tells the host some steps later: no step waits. `folder`: the
    checkpoints; `infinite`: buffers that never are finite; `remembered`: how many batches can be named."""

    def __init__(
        self, device: torch.device, data: ImageDataModule, folder: Path, infinite: list[str], remembered: int
    ) -> None:
        self.data, self.folder, self.infinite = data, folder, infinite
        self.bad = torch.full((), -1, device=device)  # the first batch with a loss that is not finite
        self.seen = torch.full((), -1, pin_memory=self.bad.is_cuda)  # what has reached the host of `bad`
        self.recent: deque[tuple[int, int, Tensor]] = deque(maxlen=remembered)

    def look(self, loss: Tensor, epoch: int, batch_idx: int, indices: Tensor) -> bool:
        """Notes the loss of a batch of samples `indices (N,)`; returns whether one is known to be bad."""
        self.recent.append((epoch, batch_idx, indices))
        self.bad = torch.where(loss.detach().isfinite() | (self.bad >= 0), self.bad, batch_idx)
        known = bool(self.seen.numpy() >= 0)
        self.seen.copy_(self.bad, non_blocking=True)
        return known

    def check(self, trainer: Trainer, agreement: Agreement, *states: dict[str, Tensor]) -> None:
        """Raises NonFiniteLoss in all processes, if a loss or a tensor of one is not finite."""
        spoilt = [name for state in states for name in not_finite(state) if name not in self.infinite]
        if agreement.any(int(self.bad) >= 0 or bool(spoilt))[0]:
            raise self.failure(trainer, spoilt)

    def failure(self, trainer: Trainer, spoilt: list[str]) -> NonFiniteLoss:
        """Returns the error that names the step, the rate, the batch's files and the last checkpoint."""
        places = [place for place in gathered((int(self.bad), trainer.global_rank)) if place[0] >= 0]
        epoch, index, _ = self.recent[-1]
        index, rank = min(places) if places else (index, 0)
        batch = epoch * int(trainer.num_training_batches) + index
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        where = f"batch {batch} (epoch {epoch + 1}, batch {index + 1} of it, learning rate {rate:g})"
        if places:
            files = self.list_files(index, rank, write=trainer.is_global_zero)
            what = f"the loss is not finite since {where}; its files are in {files}"
        else:
            spoilt = max(gathered(spoilt), key=len)
            count = f"{len(spoilt)}, such as {spoilt[0]}"
            what = f"the network is not finite after {where}; tensors with NaN or infinity: {count}"
        sound, _ = newest(self.folder)
        before = f"The weights before are in {shown(sound)}" if sound else "There is no checkpoint before it"
        error = NonFiniteLoss(f"{what}. {before}: try a lower optimizer.lr or trainer.gradient_clip_val=1")
        error.batch = (epoch, index)
        return error

    def list_files(self, index: int, rank: int, write: bool) -> str:
        """Writes the files of a rank's batch into `nonfinite.txt`; returns its path and the first names."""
        indices = next((found for _, batch, found in self.recent if batch == index), torch.empty(0))
        names = gathered([self.data.sets["train"].name(i) for i in indices.tolist()])[rank]
        listed = self.folder.parent / "nonfinite.txt"
        if write:
            listed.write_text("\n".join(names) + "\n")
        return f"{shown(listed)} ({', '.join(names[:3])}, …)"
