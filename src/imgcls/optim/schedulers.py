"""Learning-rate schedules. Each is a function of the step: warm-up in a line, then its own shape.

A schedule gets the optimizer and `Steps`; `warmup_epochs` may be a fraction. All but plateau change the rate
at every step.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from imgcls.errors import UserError

log = logging.getLogger(__name__)
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Steps:
    """Optimizer steps: in an epoch and in the whole training (null: without end)."""

    per_epoch: int
    total: int | None

    def whole(self, name: str) -> int:
        """Returns the steps of the whole training; raises UserError where it has no end."""
        if self.total is None:
            raise UserError(f"scheduler={name} needs an end: set trainer.max_epochs or trainer.max_steps")
        return self.total

    def warmup(self, epochs: float) -> int:
        """Returns the steps of a warm-up; of one as long as the whole training, a tenth of the training."""
        steps = round(epochs * self.per_epoch)
        if not steps or self.total is None or steps < self.total:
            return steps
        tenth = self.total // 10
        said = (
            f"scheduler.warmup_epochs={epochs:g} is as long as the training, which would never reach its rate"
        )
        rank_zero_only(log.warning)(f"{said}: shortened to {tenth} of its {self.total} steps")
        return tenth


Schedule = list[dict[str, Any]]  # as Lightning's configure_optimizers takes them


def by_step(optimizer: Optimizer, warmup: int, factor: Callable[[int], float]) -> Schedule:
    """Returns the schedule that multiplies the rate by `factor(step)`, after a warm-up of so many steps."""

    def rate(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else factor(step)

    return [{"scheduler": LambdaLR(optimizer, rate), "interval": "step"}]


def cosine(
    optimizer: Optimizer, steps: Steps, warmup_epochs: NotNegative = 0.0, final: NotNegative = 0.0
) -> Schedule:
    """Half a cosine down to `final` times the rate (Loshchilov and Hutter 2016)."""
    total, warmup = steps.whole("cosine"), steps.warmup(warmup_epochs)

    def factor(step: int) -> float:
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return by_step(optimizer, warmup, factor)


def constant(optimizer: Optimizer, steps: Steps, warmup_epochs: NotNegative = 0.0) -> Schedule:
    """The same rate throughout."""
    return by_step(optimizer, steps.warmup(warmup_epochs), lambda step: 1.0)


def multi_step(
    optimizer: Optimizer,
    steps: Steps,
    milestones: list[Share],
    gamma: Positive = 0.1,
    warmup_epochs: NotNegative = 0.0,
) -> Schedule:
    """The rate times `gamma` at each milestone, a share of the training (He et al. 2015: 0.5 and 0.75)."""
    places = [milestone * steps.whole("multi_step") for milestone in milestones]
    warmup = steps.warmup(warmup_epochs)
    return by_step(optimizer, warmup, lambda step: gamma ** sum(step >= place for place in places))


def one_cycle(
    optimizer: Optimizer,
    steps: Steps,
    pct_start: Share = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
    cycle_momentum: bool = True,
) -> Schedule:
    """Up to the optimizer's rate, then down; momentum the other way round (Smith and Topin 2017)."""
    rates = [group["lr"] for group in optimizer.param_groups]
    total = steps.whole("one_cycle") + 1  # torch counts the rate after the last step too
    cycle_momentum = cycle_momentum and ("momentum" in optimizer.defaults or "betas" in optimizer.defaults)
    shape: dict[str, Any] = {"div_factor": div_factor, "final_div_factor": final_div_factor}
    schedule = OneCycleLR(
        optimizer, rates, total, pct_start=pct_start, cycle_momentum=cycle_momentum, **shape
    )
    return [{"scheduler": schedule, "interval": "step"}]


def plateau(
    optimizer: Optimizer,
    steps: Steps,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    patience: Annotated[int, Field(ge=0)] = 5,
    warmup_epochs: NotNegative = 0.0,
) -> Schedule:
    """The rate times `factor` where `monitor` has not improved for `patience` epochs."""
    reduce = ReduceLROnPlateau(optimizer, mode, factor, patience)
    schedule: Schedule = [{"scheduler": reduce, "interval": "epoch", "monitor": monitor}]
    if warmup := steps.warmup(warmup_epochs):
        line = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        schedule.append({"scheduler": line, "interval": "step"})
    return schedule
