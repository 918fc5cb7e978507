"""Task: what every task has in common, whatever it learns: its network, its data, and exact optimizer steps."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from imgcls.data.module import ImageDataModule
from imgcls.optim.schedulers import Steps

SCALED = ("16-mixed", "16")  # precisions in which a gradient scaler unscales before a plain step


def data_of(trainer: Trainer) -> ImageDataModule:
    """Returns the data that a trainer reads; Lightning's type of it is any data."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, ImageDataModule)
    return data


class Task(LightningModule):
    """The part of ImageClassifier that makes Lightning's optimizer steps exact; the network is its `network`."""

    network: nn.Module
    skipped: list[list[int]]  # batches [epoch, index] that teach nothing

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Makes a step that of the mean over its batches; Lightning divides by `accumulate_grad_batches`, however few
        the batches at an epoch's end are."""
        every, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        first = done - done % every
        group = [[self.current_epoch, index] for index in range(first, int(min(first + every, batches)))]
        taught = sum(batch not in self.skipped for batch in group)
        super().backward(loss if taught in (0, every) else loss * (every / taught), *args, **kwargs)

    def fused_steps(self) -> bool:
        """Whether the optimizer may take fused steps."""
        scaled = self.trainer.precision in (
            "16-mixed",
            "16",
        )  # the gradient scaler unscales before a plain step
        sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        return bool(self.hparams["fused"]) and not scaled and not sharded

    @staticmethod
    def steps(trainer: Trainer, data: ImageDataModule) -> Steps:
        """Counts optimizer steps from settings. Lightning's own estimate sets the loaders up too early for an
        exact resume."""
        batches, limit = data.batches_per_epoch(trainer.world_size), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = max(-(-batches // trainer.accumulate_grad_batches), 1)
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            ends.append(per_epoch * trainer.max_epochs)
        return Steps(per_epoch, min(ends) if ends else None)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if not gradient_clip_val:
            return
        if self.trainer.precision in ("16-mixed", "16"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif (
            gradient_clip_algorithm == "value"
        ):  # Lightning refuses to clip for a fused step, with no need in bf16
            nn.utils.clip_grad_value_(self.network.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)
