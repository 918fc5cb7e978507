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
        if (
            self.every_n_steps
            and trainer.global_step % self.every_n_steps == 0
            and (not self.kept or self.kept[-1][0] != trainer.global_step)
        ):
            self.kept.append(
                (trainer.global_step, outputs["loss"].detach() * trainer.accumulate_grad_batches)
            )

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
