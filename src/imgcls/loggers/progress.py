"""EpochProgress callback: shows a bar on a terminal, and logs a line per epoch everywhere."""

import logging
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from imgcls.data.batch import Batch

log = logging.getLogger(__name__)


class EpochProgress(ProgressBar):
    """Shows a bar with time left, images per second and loss on a terminal; logs a plain line per epoch."""

    def __init__(self, refresh_seconds: float = 0.25) -> None:
        super().__init__()
        self.refresh_seconds, self.enabled, self.console = refresh_seconds, True, Console()
        self.bar: Progress | None = None
        self.loss: Tensor | None = None
        self.ended: str | None = None  # the epoch that ended and is not yet reported
        self.validated = False  # whether it was
        self.images, self.first_step, self.start, self.refreshed, self.epoch_start = 0, 0, 0.0, 0.0, 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start, self.first_step = time.perf_counter(), trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self.enabled and trainer.is_global_zero and self.console.is_terminal:
            name, rest = TextColumn("{task.description}"), TextColumn("{task.fields[rest]}")
            columns = name, BarColumn(bar_width=24), MofNCompleteColumn(), rest
            self.bar = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
            self.bar.start()
            self.task = self.bar.add_task("training", rest="")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(trainer)
        self.images, self.epoch_start, self.validated = 0, time.perf_counter(), False
        if self.bar is not None:
            batches = trainer.num_training_batches
            total = int(batches) if batches != float("inf") else None
            self.bar.reset(self.task, total=total, description=self._epoch(trainer), rest="")

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
        # The next refresh shows this loss: a copy into pinned memory needs not wait for the device.
        self.loss = torch.empty((), pin_memory=outputs["loss"].is_cuda)
        self.loss.copy_(outputs["loss"].detach(), non_blocking=True)
        rest = f"{speed:,.0f} images/s{loss}  {self._left(trainer, now)}"
        self.bar.update(self.task, completed=batch_idx + 1, rest=rest, refresh=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.update(self.task, rest="validating", refresh=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ended = self._epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(trainer)

    def _line(self, trainer: Trainer) -> None:
        """Logs the line of the epoch that ended; by now all its metrics are known."""
        if self.ended is None or not trainer.is_global_zero or not self.enabled:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        names = ["train/loss", "train/top1"]
        if self.validated:
            names += ["val/loss", "val/top1", getattr(trainer.checkpoint_callback, "monitor", "")]
        shown = [f"{name} {values[name]:.4f}" for name in dict.fromkeys(names) if name in values]
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
        """Returns the time left, from the share of the batches that is done; "" if it can't be known."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1 - self.first_step
        epochs, batches = trainer.max_epochs or 0, trainer.num_training_batches
        if epochs <= 0 or not done or batches == float("inf"):
            return ""
        seconds = round((now - self.start) / done * max(batches * epochs - done - self.first_step, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # or the cursor stays hidden

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
