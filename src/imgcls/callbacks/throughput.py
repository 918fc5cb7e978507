"""Throughput callback: logs the images per second of each epoch."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


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
