"""LossCurve and Throughput callbacks: log the loss of single steps, and the images per second of epochs."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class LossCurve(Callback):
    """Logs `train/loss_step` every n steps; kept on the device and read once an epoch."""

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.kept: list[tuple[int, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or (self.kept and self.kept[-1][0] == step):
            return
        self.kept.append((step, outputs["loss"].detach() * trainer.accumulate_grad_batches))

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
        self.kept = state_dict["kept"]


class Throughput(Callback):
    """Logs `images_per_second`: training images of an epoch, on all devices, over the time spent on them."""

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
        rate = self.images * trainer.world_size / self.seconds
        pl_module.log("images_per_second", rate, rank_zero_only=True)
