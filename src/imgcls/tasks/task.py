"""Task: what all tasks have in common: a network, its data, and optimizer steps that are exact."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from imgcls.data.batch import Batch
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.optim import Steps
from imgcls.runs.checkpoints import find_checkpoint, load_content
from imgcls.seeding import key_seed
from imgcls.spec import DataSpec

WITH_SCALER = ("16-mixed", "16")  # precisions whose gradients are scaled


def data_of(trainer: Trainer) -> ImageDataModule:
    """Returns the data that a trainer reads."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, ImageDataModule)
    return data


class Task(LightningModule):
    """A network in Lightning's training loop. A subclass makes `spec` and `network`, and says what steps do.
    Its hyper-parameters have `seed` (of what is drawn in training) and `fused` (take fused optimizer
    steps)."""

    spec: DataSpec
    network: nn.Module
    first_rate: float  # the learning rate at the epoch's start

    def __init__(self) -> None:
        super().__init__()
        self.skipped: list[list[int]] = []  # batches [epoch, index] that had a loss that was not finite

    def on_train_epoch_start(self) -> None:
        self.first_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(key_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank))

    def skipped_loss(self) -> Tensor:
        """Returns the loss of a skipped batch: 0, with gradients of 0."""
        return torch.stack([0 * p.sum() for p in self.network.parameters() if p.requires_grad]).sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Makes a step that of the mean over the batches that it accumulates: Lightning divides by
        `accumulate_grad_batches`, also where an epoch's last step has fewer."""
        every, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        first = done - done % every
        group = [[self.current_epoch, index] for index in range(first, int(min(first + every, batches)))]
        taught = sum(batch not in self.skipped for batch in group)
        super().backward(loss if taught in (0, every) else loss * (every / taught), *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if not gradient_clip_val:
            return
        if self.trainer.precision in WITH_SCALER:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":  # Lightning would refuse to clip for a fused step
            nn.utils.clip_grad_value_(self.network.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def fused_steps(self) -> bool:
        """Says whether the optimizer may take fused steps, which neither unscale nor shard."""
        sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        return self.hparams["fused"] and not sharded and self.trainer.precision not in WITH_SCALER

    @staticmethod
    def steps(trainer: Trainer, data: ImageDataModule) -> Steps:
        """Counts optimizer steps by settings: Lightning's count sets up loaders too early for a resume."""
        batches, limit = data.batches_per_epoch(trainer.world_size), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = max(-(-batches // trainer.accumulate_grad_batches), 1)
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            ends.append(per_epoch * trainer.max_epochs)
        return Steps(per_epoch, min(ends) if ends else None)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves all to a device, but casts the network and its input alone, where Lightning casts all: sums
        and class weights would be wrong in half precision."""
        if dtype := kwargs.pop("dtype", None):
            self.network.to(dtype)
            for name, value in self.named_buffers(recurse=False):
                setattr(self, name, value.to(dtype))
        return super().to(*args, **kwargs) if args or kwargs else self

    def double(self) -> Self:
        return self.to(dtype=torch.float64)  # Lightning asks for it in 64-true

    def configure_model(self) -> None:
        """Shards the network, where the strategy asks for it and it is not sharded yet."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, ModelParallelStrategy) or isinstance(self.network, FSDPModule):
            return
        mesh = strategy.device_mesh["data_parallel"]
        # FSDP shards no other memory format.
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module in (*self.network.children(), self.network):
            if any(True for _ in module.parameters()):
                fully_shard(module, mesh=mesh)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_batches"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("skipped_batches", [])
        self.skipped = self.skipped + [batch for batch in saved if batch not in self.skipped]

    @classmethod  # in place of Lightning's, which runs code that comes from an address
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        *,
        trust: Sequence[str] = (),
    ) -> Self:
        """Returns the task of a checkpoint, for evaluation.

        Args:
            checkpoint_path: a file, or a run directory: its best checkpoint.
            map_location: the device.
            trust: packages, all of whose code may run, that a network from outside of this package is from.

        Raises:
            UserError: an address, or a file that is missing, damaged, carries code, or names a network that
                isn't allowed (imgcls.config.allowed). Nothing that the file names was run then.
        """
        path = find_checkpoint(str(checkpoint_path))
        return cls.restored(load_content(path), path, trust).to(map_location)

    @classmethod
    def restored(cls, content: Mapping[str, Any], path: Path, trust: Sequence[str] = ()) -> Self:
        """Returns the task of a checkpoint's content, in evaluation mode on the CPU; raises as above."""
        try:
            task = cls.rebuilt(content["hyper_parameters"], trust)
            state = content["state_dict"]  # also of what training alone has, such as class weights
            own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
            task.network.load_state_dict(own)
            task.on_load_checkpoint(dict(content))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            fault = f"its weights are of another network than its settings say ({reason})"
            raise UserError(f"checkpoint={path}: {fault}") from error
        return task.eval()

    @classmethod
    @abstractmethod
    def rebuilt(cls, parameters: Mapping[str, Any], trust: Sequence[str]) -> Self:
        """Returns a task with the network that a checkpoint's hyper-parameters name, without its weights."""
