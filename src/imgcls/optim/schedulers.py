"""Learning-rate schedules: a warm-up in a line, then a shape.

A schedule gets the optimizer and `Steps`. All but plateau change the rate at every step, or with `staircase`
at the first step of each epoch. What the four arguments of each say:

    warmup_epochs: of the rise to the rate, in epochs; a fraction is allowed.
    warmup_steps: the same in steps, where it is given.
    warmup_start: the share of the rate at the first step; null: that of the first of the warm-up's steps.
    staircase: the rate of an epoch is that of its first step, as where a schedule goes on by epochs.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from imgcls.config.build import build
from imgcls.config.check import locate, parameters, typed
from imgcls.config.training import Node, ScheduleEntry
from imgcls.errors import UserError
from imgcls.spec import Share

log = logging.getLogger(__name__)


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

    def warmup(self, epochs: float, given: int | None = None) -> int:
        """Returns the steps of a warm-up, which may be `given`; of one as long as the whole training, a tenth
        of the training."""
        steps = round(epochs * self.per_epoch) if given is None else given
        if not steps or self.total is None or steps < self.total:
            return steps
        tenth = self.total // 10
        said = f"warmup_epochs={epochs:g}" if given is None else f"warmup_steps={given}"
        late = "is as long as the training, which would never reach its rate"
        rank_zero_only(log.warning)(
            f"scheduler.{said} {late}: shortened to {tenth} of its {self.total} steps"
        )
        return tenth


Schedule = list[dict[str, Any]]  # as Lightning's configure_optimizers takes them
Shape = Callable[[int, float], float]  # from a step, and the share of the way after the warm-up, to a factor


@dataclass(frozen=True)
class Rise:
    """The warm-up: its length in steps, the share of the rate at the first one, and whether the rate changes
    once an epoch alone."""

    steps: int
    start: float | None
    staircase: bool

    @classmethod
    def read(
        cls, steps: Steps, epochs: float, given: int | None, start: float | None, staircase: bool
    ) -> "Rise":
        return cls(steps.warmup(epochs, given), start, staircase)

    def at(self, step: int) -> float:
        """Returns the share of the rate at a step of the warm-up."""
        if self.start is None:
            return (step + 1) / (self.steps + 1)
        return self.start + (1 - self.start) * step / self.steps


def by_step(optimizer: Optimizer, steps: Steps, rise: Rise, total: int | None, shape: Shape) -> Schedule:
    """Returns the schedule that follows `shape` after the warm-up, until the `total` of steps. A group of
    parameters that has `epochs` follows it until their end, and learns no more after it."""

    def of_group(epochs: float | None) -> Callable[[int], float]:
        end = total if epochs is None else math.ceil(epochs * steps.per_epoch)

        def rate(step: int) -> float:
            if rise.staircase:
                step -= step % steps.per_epoch
            if epochs is not None and end is not None and step >= end:
                return 0.0
            if step < rise.steps:
                return rise.at(step)
            way = 1.0 if end is None else min((step - rise.steps) / max(end - rise.steps, 1), 1.0)
            return shape(step, way)

        return rate

    rates = [of_group(group.get("epochs")) for group in optimizer.param_groups]
    return [{"scheduler": LambdaLR(optimizer, rates), "interval": "step"}]


def cosine(
    optimizer: Optimizer,
    steps: Steps,
    warmup_epochs: NonNegativeFloat = 0.0,
    final: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt | None = None,
    warmup_start: Share | None = None,
    staircase: bool = False,
    whole: bool = False,
) -> Schedule:
    """Half a cosine down to `final` times the rate (Loshchilov and Hutter 2016). With `whole` it is that of
    the whole training, whose beginning the warm-up takes, as timm has it."""
    rise = Rise.read(steps, warmup_epochs, warmup_steps, warmup_start, staircase)
    total = steps.whole("cosine")
    taken = rise.steps / total if whole else 0.0

    def shape(step: int, way: float) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * (taken + (1 - taken) * way))) / 2

    return by_step(optimizer, steps, rise, total, shape)


def linear(
    optimizer: Optimizer,
    steps: Steps,
    warmup_epochs: NonNegativeFloat = 0.0,
    final: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt | None = None,
    warmup_start: Share | None = None,
    staircase: bool = False,
) -> Schedule:
    """A line down to `final` times the rate."""
    rise = Rise.read(steps, warmup_epochs, warmup_steps, warmup_start, staircase)
    return by_step(optimizer, steps, rise, steps.whole("linear"), lambda step, way: 1 - (1 - final) * way)


def wsd(
    optimizer: Optimizer,
    steps: Steps,
    warmup_epochs: NonNegativeFloat = 0.0,
    final: NonNegativeFloat = 0.0,
    decay: Share = 0.2,
    form: Literal["sqrt", "linear"] = "sqrt",
    warmup_steps: NonNegativeInt | None = None,
    warmup_start: Share | None = None,
    staircase: bool = False,
) -> Schedule:
    """The same rate until the last share `decay` of the training, in which it falls as 1 − √way or in a line
    (warm-up, stable, decay: Hägele et al. 2024)."""
    rise = Rise.read(steps, warmup_epochs, warmup_steps, warmup_start, staircase)
    total = steps.whole("wsd")
    begin = min(max((total * (1 - decay) - rise.steps) / max(total - rise.steps, 1), 0.0), 1.0)

    def shape(step: int, way: float) -> float:
        fallen = max(way - begin, 0.0) / max(1 - begin, 1e-12)
        return 1 - (1 - final) * (math.sqrt(fallen) if form == "sqrt" else fallen)

    return by_step(optimizer, steps, rise, total, shape)


def constant(
    optimizer: Optimizer,
    steps: Steps,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt | None = None,
    warmup_start: Share | None = None,
    staircase: bool = False,
) -> Schedule:
    """The same rate throughout."""
    rise = Rise.read(steps, warmup_epochs, warmup_steps, warmup_start, staircase)
    return by_step(optimizer, steps, rise, steps.total, lambda step, way: 1.0)


def multi_step(
    optimizer: Optimizer,
    steps: Steps,
    milestones: list[NonNegativeFloat],
    gamma: PositiveFloat = 0.1,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt | None = None,
    warmup_start: Share | None = None,
    staircase: bool = False,
) -> Schedule:
    """The rate times `gamma` at each milestone: shares of the training (He et al. 2015: 0.5 and 0.75) or,
    where one of them is above 1, epochs (100 and 150)."""
    in_epochs = any(milestone > 1 for milestone in milestones)
    if in_epochs and any(milestone % 1 for milestone in milestones):
        raise UserError(
            f"scheduler.milestones={milestones}: expected shares of the training, or whole epochs"
        )
    rise = Rise.read(steps, warmup_epochs, warmup_steps, warmup_start, staircase)
    total = steps.total if in_epochs else steps.whole("multi_step")
    places = [milestone * (steps.per_epoch if in_epochs else total or 0) for milestone in milestones]
    if total is not None and (
        late := [m for m, place in zip(milestones, places, strict=True) if place >= total]
    ):
        rank_zero_only(log.warning)(f"scheduler.milestones: {late} lie beyond the end of the training")

    return by_step(
        optimizer, steps, rise, total, lambda step, way: gamma ** sum(step >= place for place in places)
    )


def one_cycle(
    optimizer: Optimizer,
    steps: Steps,
    pct_start: Share = 0.3,
    div_factor: PositiveFloat = 25.0,
    final_div_factor: PositiveFloat = 1e4,
    cycle_momentum: bool = True,
) -> Schedule:
    """Up to the optimizer's rate, then down; momentum the other way round (Smith and Topin 2017)."""
    rates = [group["lr"] for group in optimizer.param_groups]
    total = steps.whole("one_cycle") + 1  # torch counts the rate after the last step too
    cycle_momentum = cycle_momentum and ("momentum" in optimizer.defaults or "betas" in optimizer.defaults)
    shape: dict[str, Any] = {"div_factor": div_factor, "final_div_factor": final_div_factor}
    shape |= {"pct_start": pct_start, "cycle_momentum": cycle_momentum}
    return [{"scheduler": OneCycleLR(optimizer, rates, total, **shape), "interval": "step"}]


def plateau(
    optimizer: Optimizer,
    steps: Steps,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    patience: NonNegativeInt = 5,
    warmup_epochs: NonNegativeFloat = 0.0,
) -> Schedule:
    """The rate times `factor` where `monitor` has not improved for `patience` epochs."""
    reduce = ReduceLROnPlateau(optimizer, mode, factor, patience)
    schedule: Schedule = [{"scheduler": reduce, "interval": "epoch", "monitor": monitor}]
    if warmup := steps.warmup(warmup_epochs):
        line = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        schedule.append({"scheduler": line, "interval": "step"})
    return schedule


def build_schedule(config: Node, optimizer: Optimizer, steps: Steps) -> Schedule:
    """Builds the schedule of conf/scheduler: one of ours, or a scheduler of torch, which goes on by epochs
    unless the dict around it, as Lightning takes one, says otherwise. Raises UserError: it is neither."""
    entry = typed(config if "scheduler" in config else {"scheduler": config}, ScheduleEntry, "scheduler")
    where = "scheduler.scheduler" if "scheduler" in config else "scheduler"
    target = locate(entry.scheduler.get("_target_"), f"{where}._target_")
    takes_steps = "steps" in parameters(target)
    given: dict[str, Any] = {"optimizer": optimizer} | ({"steps": steps} if takes_steps else {})
    built = build(entry.scheduler, where, **given)
    if any("epochs" in group for group in optimizer.param_groups) and not knows_epochs(built):
        fault = f"scheduler={entry.scheduler['_target_']} does not know when a group of parameters ends"
        raise UserError(f"optimizer.groups: {fault}; leave out epochs, or choose cosine, linear or wsd")
    if isinstance(built, LRScheduler):
        kept: dict[str, Any] = {"scheduler": built, "interval": entry.interval}
        kept |= {"frequency": entry.frequency} if entry.frequency else {}
        return [kept | ({"monitor": entry.monitor} if isinstance(built, ReduceLROnPlateau) else {})]
    if not isinstance(built, list) or "scheduler" in config:
        expected = "expected a scheduler of torch, or without a dict around it Lightning's list of dicts"
        raise UserError(f"{where}._target_={entry.scheduler['_target_']}: {expected}")
    return built


def knows_epochs(built: object) -> bool:
    """Says whether a schedule was made by `by_step`."""
    return isinstance(built, list) and isinstance(built[0]["scheduler"], LambdaLR)
