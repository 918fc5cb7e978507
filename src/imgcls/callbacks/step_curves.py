"""StepCurves and Throughput callbacks: what single steps came to, and the images per second of epochs."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


@dataclass
class Step:
    """Values of one step: known ones, and those of the device, whose copies may still be on the way."""

    number: int
    known: dict[str, float]
    names: list[str]
    values: Tensor  # (n,) on the host
    arrives: torch.cuda.Event | None = None

    def is_there(self) -> bool:
        return self.arrives is None or self.arrives.query()

    def all(self) -> dict[str, float]:
        if self.arrives is not None:
            self.arrives.synchronize()
        return self.known | dict(zip(self.names, self.values.tolist(), strict=True))


class StepCurves(Callback):
    """Logs every n steps `train/loss_step`, `lr_step` (`lr_step/0`, … of several rates), and if asked for
    `train/gradient_norm`, before clipping. The device copies its values while it goes on; loggers get them
    as soon as they are there, after so many seconds or steps.

    Args:
        every_n_steps: 0: nothing is logged.
        flush_seconds: the longest that values are kept back, within an epoch.
        flush_every_n_steps: the same in steps; None: seconds alone decide.
        gradient_norm: the 2-norm of all gradients of the step.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        flush_seconds: float = 60.0,
        flush_every_n_steps: int | None = None,
        gradient_norm: bool = False,
    ) -> None:
        self.every_n_steps, self.gradient_norm = every_n_steps, gradient_norm
        self.flush_seconds, self.flush_every_n_steps = flush_seconds, flush_every_n_steps
        self.kept: list[Step] = []
        self.norm: Tensor | None = None
        self.flushed = time.monotonic()

    def is_due(self, step: int) -> bool:
        return bool(self.every_n_steps) and step % self.every_n_steps == 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.gradient_norm and self.is_due(trainer.global_step + 1):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self.norm = nn.utils.get_total_norm(gradients)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        step = trainer.global_step
        if not self.is_due(step) or (self.kept and self.kept[-1].number == step):
            return
        named = {"train/loss_step": outputs["loss"].detach() * trainer.accumulate_grad_batches}
        if self.norm is not None:
            named["train/gradient_norm"] = self.norm.detach()
            self.norm = None
        here = torch.stack([value.float() for value in named.values()])
        values = torch.empty(len(named), pin_memory=here.is_cuda)
        values.copy_(here, non_blocking=True)
        arrives = torch.cuda.current_stream(here.device).record_event() if here.is_cuda else None
        self.kept.append(Step(step, rates(trainer), list(named), values, arrives))
        late = time.monotonic() - self.flushed > self.flush_seconds
        if late or (self.flush_every_n_steps and step % self.flush_every_n_steps == 0):
            self.flush(trainer, wait=False)

    def flush(self, trainer: Trainer, wait: bool) -> None:
        """Gives the loggers what is kept, in order; without `wait` what is there by now."""
        self.flushed = time.monotonic()
        while self.kept and (wait or self.kept[0].is_there()):
            step = self.kept.pop(0)
            for logger in trainer.loggers:
                logger.log_metrics(step.all(), step.number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush(trainer, wait=True)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [(step.number, step.all()) for step in self.kept]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = [Step(number, known, [], torch.empty(0)) for number, known in state_dict["kept"]]


def rates(trainer: Trainer) -> dict[str, float]:
    """Returns the learning rates of the optimizer's groups, each rate once."""
    found = list(dict.fromkeys(float(group["lr"]) for group in trainer.optimizers[0].param_groups))
    if len(found) == 1:
        return {"lr_step": found[0]}
    return {f"lr_step/{place}": rate for place, rate in enumerate(found)}


class Throughput(Callback):
    """Logs with each epoch `images_per_second`: its training images, on all devices, over the time spent on
    them; and `seconds`: since the training began, validation included, the pauses of a resumed run not."""

    def __init__(self) -> None:
        self.images, self.start, self.seconds = 0, 0.0, 0.0
        self.began, self.total = 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter() - self.total

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.restarted_mid_epoch:
            self.images, self.seconds = 0, 0.0
        self.start = time.perf_counter() - self.seconds

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.targets)
        now = time.perf_counter()
        self.seconds, self.total = now - self.start, now - self.began

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]
        self.total = state_dict.get("total", 0.0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.total = time.perf_counter() - self.began
        rate = self.images * trainer.world_size / self.seconds
        pl_module.log_dict({"images_per_second": rate, "seconds": self.total}, rank_zero_only=True)
