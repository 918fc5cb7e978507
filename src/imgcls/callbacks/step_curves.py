"""LossCurve callback: logs the training loss of single steps."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class LossCurve(Callback):
    """Logs `train/loss_step` every n steps; kept on the device and read once an epoch."""

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.kept: list[tuple[int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
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
