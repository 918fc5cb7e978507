"""Callbacks of our own. None reads from the device within an epoch."""

import logging
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.callbacks.progress import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from imgcls.data.base import Batch

log = logging.getLogger(__name__)


class Throughput(Callback):
    """Logs `images_per_second`: all training images of an epoch, on all devices, over the time spent on them."""

    def __init__(self) -> None:
        self.images, self.start, self.seconds = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images, self.start = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.targets)
        self.seconds = time.perf_counter() - self.start

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
            losses = torch.stack([loss for _, loss in self.kept]).tolist()
            for (step, _), loss in zip(self.kept, losses, strict=True):
                for logger in trainer.loggers:
                    logger.log_metrics({"train/loss_step": loss}, step)
        self.kept = []


class SaveConfig(Callback):
    """Puts the run's whole config, plain and resolved, into each checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config


class EMA(WeightAveraging):
    """Exponential moving average of the weights, which validation, test and the checkpoint then use.

    The decay rises to its value as (1 + n) / (10 + n) over the first updates n, so that short runs gain too.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        self.update_every_n_steps = update_every_n_steps
        average = get_ema_multi_avg_fn  # one call for all tensors: 4 times faster than one for each

        def update(averaged: Any, current: Any, count: Tensor | int) -> None:
            done = self._latest_update_step // update_every_n_steps
            average(min(decay, (1 + done) / (10 + done)))(averaged, current, count)

        super().__init__(multi_avg_fn=update)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():  # our configure_model does nothing but shard
            warnings.filterwarnings("ignore", message=".*overrides the configure_model")
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # After a fit, Lightning's would load the weights that are not averaged into the module to be tested.
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and (step_idx + 1) % self.update_every_n_steps == 0


class EpochProgress(ProgressBar):
    """A bar with ETA, images per second and loss on a terminal; and everywhere a plain line an epoch."""

    def __init__(self, refresh_seconds: float = 0.25) -> None:
        super().__init__()
        self.refresh_seconds, self.enabled = refresh_seconds, True
        self.bar: Progress | None = None
        self.loss: Tensor | None = None
        self.ended: str | None = None  # the epoch that ended and is not yet reported
        self.images, self.first_step, self.start, self.refreshed, self.epoch_start = 0, 0, 0.0, 0.0, 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start, self.first_step = time.perf_counter(), trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self.enabled and trainer.is_global_zero and Console().is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rest]}"),
            )
            self.bar = Progress(*columns, transient=True, auto_refresh=False)
            self.bar.start()
            self.task = self.bar.add_task("training", rest="")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(trainer)
        self.images, self.epoch_start = 0, time.perf_counter()
        if self.bar is not None:
            total = trainer.num_training_batches
            self.bar.reset(
                self.task,
                total=int(total) if total != float("inf") else None,
                description=self._epoch(trainer),
                rest="",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.images += len(batch.targets)
        now = time.perf_counter()
        last = batch_idx + 1 == trainer.num_training_batches
        if self.bar is None or (now - self.refreshed < self.refresh_seconds and not last):
            return
        self.refreshed = now
        speed = self.images * trainer.world_size / (now - self.epoch_start)
        loss = "" if self.loss is None else f"  loss {float(self.loss.numpy()):.3f}"
        self.loss = (
            outputs["loss"].detach().float().to("cpu", non_blocking=True)
        )  # shown at the next refresh, when it is there
        rest = f"{speed:,.0f} images/s{loss}  {self._left(trainer, now)}"
        self.bar.update(self.task, completed=batch_idx + 1, rest=rest, refresh=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.update(self.task, rest="validating", refresh=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ended = self._epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(trainer)

    def _line(self, trainer: Trainer) -> None:
        """Prints the epoch that ended; by now its metrics are all there."""
        if self.ended is None or not trainer.is_global_zero or not self.enabled:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [
            f"{name} {values[name]:.4f}"
            for name in ("train/loss", "train/top1", "val/loss", "val/top1")
            if name in values
        ]
        speed = f"{values['images_per_second']:,.0f} images/s" if "images_per_second" in values else ""
        if self.bar is not None:
            self.bar.stop()  # or the line would be written into the bar
        log.info("  ".join([self.ended, *shown, speed, self._left(trainer, time.perf_counter())]).rstrip())
        if self.bar is not None:
            self.bar.start()
        self.ended = None

    def _epoch(self, trainer: Trainer) -> str:
        last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else "…"
        return f"epoch {trainer.current_epoch + 1}/{last}"

    def _left(self, trainer: Trainer, now: float) -> str:
        """Returns the time left, from the share of the batches that is done."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1 - self.first_step
        if not trainer.max_epochs or trainer.max_epochs < 0 or not done or trainer.num_training_batches == float("inf"):
            return ""
        left = trainer.num_training_batches * trainer.max_epochs - done - self.first_step
        seconds = round((now - self.start) / done * max(left, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
