"""Callbacks of our own. None reads from the device within an epoch."""

import time
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from imgcls.backbones.build import try_shapes
from imgcls.engine.resume import note_change
from imgcls.errors import UserError
from imgcls.runs.record import rerooted, write_config
from imgcls.tasks.classification import ImageClassifier


class Throughput(Callback):
    """Logs `images_per_second`: all training images of an epoch, on all devices, over the time spent on them."""

    def __init__(self) -> None:
        self.images, self.start, self.seconds = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.restarted_mid_epoch:
            self.images, self.seconds = 0, 0.0
        self.start = time.perf_counter() - self.seconds

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.targets)
        self.seconds = time.perf_counter() - self.start

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("images_per_second", self.images * trainer.world_size / self.seconds, rank_zero_only=True)


class LossCurve(Callback):
    """Logs `train/loss_step` every n steps; kept on the device and read once an epoch."""

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.kept: list[tuple[int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (
            self.every_n_steps
            and trainer.global_step % self.every_n_steps == 0
            and (not self.kept or self.kept[-1][0] != trainer.global_step)
        ):
            self.kept.append((trainer.global_step, outputs["loss"].detach() * trainer.accumulate_grad_batches))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.kept:
            losses = torch.stack([loss.to(pl_module.device) for _, loss in self.kept]).tolist()
            for (step, _), loss in zip(self.kept, losses, strict=True):
                for logger in trainer.loggers:
                    logger.log_metrics({"train/loss_step": loss}, step)
        self.kept = []

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [(step, loss.cpu()) for step, loss in self.kept]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = [(step, loss) for step, loss in state_dict["kept"]]


class ProgressiveResizing(Callback):
    """Trains on smaller images first, which is faster, and often generalises better (Tan and Le 2021, EfficientNetV2).

    Args:
        start: share of the image size in the first epoch.
        until: share of the epochs after which images have their whole size.
        multiple: sizes are multiples of this number of pixels.
    """

    def __init__(self, start: float = 0.5, until: float = 0.75, multiple: int = 16) -> None:
        if not 0 < start <= 1 or not 0 < until <= 1 or multiple < 1:
            raise UserError(
                f"ProgressiveResizing: start={start}, until={until}, multiple={multiple}: expected shares above 0 and at "
                "most 1, and a number of pixels"
            )
        self.start, self.until, self.multiple = start, until, multiple

    def size(self, epoch: int, epochs: int, whole: int) -> int:
        """Returns the side of the images of an epoch, in pixels."""
        share = self.start + (1 - self.start) * min(epoch / max(round(self.until * epochs), 1), 1.0)
        return whole if share == 1 else min(max(round(share * whole / self.multiple), 1) * self.multiple, whole)

    def on_fit_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise UserError("ProgressiveResizing needs an end: set trainer.max_epochs")
        spec = pl_module.spec
        smallest = self.size(0, trainer.max_epochs, spec.image_size)
        try_shapes(pl_module.network, spec.num_classes, spec.channels, smallest)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        pl_module.train_size = self.size(trainer.current_epoch, trainer.max_epochs or 1, pl_module.spec.image_size)


class SaveConfig(Callback):
    """Puts the run's whole config, plain and resolved, into each checkpoint."""

    def __init__(self, config: dict[str, Any], resumed_from: Path | None = None) -> None:
        self.config, self.resumed_from = config, resumed_from
        self.kept = self.trained = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep(trainer)

    def keep(self, trainer: Trainer) -> None:
        """Writes the config into the run directory, once: what was changed at a resume and has worked stays so."""
        if trainer.is_global_zero and not self.kept:
            config = {k: v for k, v in self.config.items() if k != "git"}
            note_change(Path(self.config["run_dir"]), config, self.resumed_from)
            write_config(Path(self.config["run_dir"]), config)
        self.kept = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        before = checkpoint["config"]["run_dir"]  # where the best checkpoint was, if the run has been moved since
        checkpoint["callbacks"] = rerooted(checkpoint["callbacks"], before, self.config["run_dir"])


class EMA(WeightAveraging):
    """Exponential moving average of the weights, which validation, test and the checkpoint then use.

    The decay rises to its value as (1 + n) / (10 + n) over the first updates n, so that short runs gain too.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay <= 1 or update_every_n_steps < 1:
            raise UserError(
                f"EMA: decay={decay}, update_every_n_steps={update_every_n_steps}: expected 0 to 1, and 1 or more"
            )
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        super().__init__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # In place of AveragedModel's own update, which reads its counter from the device, twice a step.
        done = self._latest_update_step
        if trainer.global_step <= done or not self.should_update(trainer.global_step - 1):
            return
        average = self._average_model
        assert average is not None
        now, kept = chain(pl_module.parameters(), pl_module.buffers()), average.module
        pairs = zip(chain(kept.parameters(), kept.buffers()), now, strict=True)
        floats = [(a.detach(), b.detach()) for a, b in pairs if a.is_floating_point()]
        count = done // self.update_every_n_steps
        decay = min(self.decay, (1 + count) / (10 + count)) if done else 0.0
        get_ema_multi_avg_fn(decay)([a for a, _ in floats], [b for _, b in floats], 0)
        average.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():  # our configure_model does nothing but shard
            warnings.filterwarnings("ignore", message=".*overrides the configure_model")
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # After a fit, Lightning's would load the weights that are not averaged into the module to be tested.
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not yet: what is saved at the end of training is both, to go on from."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and (step_idx + 1) % self.update_every_n_steps == 0
