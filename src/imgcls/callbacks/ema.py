"""EMA callback: keeps an exponential moving average of the weights."""

import warnings
from itertools import chain
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from imgcls.engine.checkpoint import State
from imgcls.engine.private import averaged_model
from imgcls.errors import UserError


class EMA(WeightAveraging):
    """Exponential moving average of the weights, which validation, test and the checkpoint then use. The
    decay rises to its value as (1 + n) / (10 + n) over the first updates n, so that short runs gain too."""

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay <= 1 or update_every_n_steps < 1:
            given = f"decay={decay}, update_every_n_steps={update_every_n_steps}"
            raise UserError(f"EMA: {given}: expected 0 to 1, and 1 or more")
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        super().__init__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Updates the average; AveragedModel's own update would read its counter from the device."""
        done = self.state_dict()["latest_update_step"]
        if trainer.global_step <= done or not self.should_update(trainer.global_step - 1):
            return
        average = averaged_model(self)
        kept = chain(average.module.parameters(), average.module.buffers())
        now = chain(pl_module.parameters(), pl_module.buffers())
        pairs = [(a.detach(), b.detach()) for a, b in zip(kept, now, strict=True) if a.is_floating_point()]
        floats = [(a, b.to(a.dtype)) for a, b in pairs]  # of weights in half precision the mean is in float32
        count = done // self.update_every_n_steps
        decay = min(self.decay, (1 + count) / (10 + count)) if done else 0.0
        get_ema_multi_avg_fn(decay)([a for a, _ in floats], [b for _, b in floats], 0)
        average.n_averaged += 1
        self.load_state_dict({"latest_update_step": trainer.global_step})

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and (step_idx + 1) % self.update_every_n_steps == 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy):
            fault = "callbacks=ema: a sharded network (trainer=fsdp) can't be averaged"
            raise UserError(f"{fault}; leave callbacks=ema out, or write trainer=ddp")
        with warnings.catch_warnings():  # our configure_model does nothing but shard
            warnings.filterwarnings("ignore", message=".*overrides the configure_model")
            super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.precision == "64-true":
            averaged_model(self).module.double()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Loads the average in a fit alone; in a test, Lightning would load the current weights instead."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does nothing yet: the checkpoint that is saved at the end of training has both, to go on from."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
