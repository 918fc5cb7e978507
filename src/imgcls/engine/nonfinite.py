"""FiniteCheck: finds out in which batch the loss or the network stopped being finite."""

from collections import deque
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from imgcls.config.paths import shown
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.processes import Agreement, gathered
from imgcls.runs.checkpoints import newest, not_finite


class NonFiniteLoss(UserError):
    """The loss, or the weights after it, became infinite or NaN in the batch `(epoch, batch index)`."""

    batch: tuple[int, int]


class FiniteCheck:
    """Looks at each loss on the device, and tells the host some steps later: no step waits for the device.

    Args:
        folder: the run's checkpoints.
        infinite: the names of buffers that are not finite from the beginning, such as a mask.
        remembered: the number of batches whose files can be named.
    """

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
        advice = "try a lower optimizer.lr or trainer.gradient_clip_val=1"
        error = NonFiniteLoss(f"{what}. {before}: {advice}")
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
