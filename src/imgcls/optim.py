"""Optimizers of torch and timm, by config, and learning-rate schedules: a warm-up in a line, then a shape.

A schedule gets the optimizer and `Steps`; `warmup_epochs` may be a fraction. All but plateau change the rate
at every step.
"""

import fnmatch
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from imgcls.config.build import build, recipe
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

    def warmup(self, epochs: float) -> int:
        """Returns the steps of a warm-up; of one as long as the whole training, a tenth of the training."""
        steps = round(epochs * self.per_epoch)
        if not steps or self.total is None or steps < self.total:
            return steps
        tenth = self.total // 10
        said = f"scheduler.warmup_epochs={epochs:g} is as long as the training, which would never reach"
        rank_zero_only(log.warning)(f"{said} its rate: shortened to {tenth} of its {self.total} steps")
        return tenth


Schedule = list[dict[str, Any]]  # as Lightning's configure_optimizers takes them


def by_step(optimizer: Optimizer, warmup: int, factor: Callable[[int], float]) -> Schedule:
    """Returns the schedule that multiplies the rate by `factor(step)`, after a warm-up of so many steps."""

    def rate(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else factor(step)

    return [{"scheduler": LambdaLR(optimizer, rate), "interval": "step"}]


def cosine(
    optimizer: Optimizer, steps: Steps, warmup_epochs: NonNegativeFloat = 0.0, final: NonNegativeFloat = 0.0
) -> Schedule:
    """Half a cosine down to `final` times the rate (Loshchilov and Hutter 2016)."""
    total, warmup = steps.whole("cosine"), steps.warmup(warmup_epochs)

    def factor(step: int) -> float:
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return by_step(optimizer, warmup, factor)


def constant(optimizer: Optimizer, steps: Steps, warmup_epochs: NonNegativeFloat = 0.0) -> Schedule:
    """The same rate throughout."""
    return by_step(optimizer, steps.warmup(warmup_epochs), lambda step: 1.0)


def multi_step(
    optimizer: Optimizer,
    steps: Steps,
    milestones: list[Share],
    gamma: PositiveFloat = 0.1,
    warmup_epochs: NonNegativeFloat = 0.0,
) -> Schedule:
    """The rate times `gamma` at each milestone, a share of the training (He et al. 2015: 0.5 and 0.75)."""
    places = [milestone * steps.whole("multi_step") for milestone in milestones]
    warmup = steps.warmup(warmup_epochs)
    return by_step(optimizer, warmup, lambda step: gamma ** sum(step >= place for place in places))


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
    if isinstance(built, LRScheduler):
        kept: dict[str, Any] = {"scheduler": built, "interval": entry.interval}
        kept |= {"frequency": entry.frequency} if entry.frequency else {}
        return [kept | ({"monitor": entry.monitor} if isinstance(built, ReduceLROnPlateau) else {})]
    if not isinstance(built, list) or "scheduler" in config:
        expected = "expected a scheduler of torch, or without a dict around it Lightning's list of dicts"
        raise UserError(f"{where}._target_={entry.scheduler['_target_']}: {expected}")
    return built


# No weights of a layer, though of more than one dimension: torchvision's names; timm's networks say theirs.
EMBEDDINGS = ("*class_token", "*pos_embedding", "*relative_position_bias_table", "*layer_scale")
Scales = Mapping[str, float]  # what the learning rate of each parameter is multiplied by, by name


def build_optimizer(
    config: Node, network: nn.Module, device: torch.device, fused: bool, scales: Scales | None = None
) -> Optimizer:
    """Builds an optimizer over two groups: weight decay for weights, none for norms, biases and embeddings.
    With `fused` it takes the fused step where the optimizer has one for this device and the config says
    nothing. Raises UserError: the optimizer does not take these keys, values or parameters."""
    name = config["_target_"]
    call = recipe(config, "optimizer")
    groups = parameter_groups(config, network, scales or {})
    if scales and config.get("lr") is None:
        fault = f"optimizer={name} has no lr, which the layers would have a share of"
        raise UserError(f"{fault}; set optimizer.lr")
    for group in groups if scales else ():
        group["lr"] = config["lr"] * group["scale"]
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("the network has no parameter to train")
    # The devices for which torch has fused steps.
    has_fused = device.type in ("cuda", "cpu", "mps") and "fused" in parameters(call.func)
    chosen = {"fused", "foreach", "differentiable"} & set(config)
    try:
        return call(groups, fused=True) if fused and has_fused and not chosen else call(groups)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"optimizer={name}: {' '.join(str(error).split())}") from error


def parameter_groups(config: Node, network: nn.Module, scales: Scales) -> list[dict[str, Any]]:
    """Returns the parameters by scale, the largest first, and weight decay: none for vectors and embeddings.
    Frozen ones too, which may learn later. Muon is for inner weights: the head is marked `use_fallback`, for
    which timm's Muon takes AdamW (Jordan 2024). (timm's own groups know no scales, and import for 2 s.)"""
    decay = config.get("weight_decay") or 0.0
    exempt = {*EMBEDDINGS, *getattr(network, "no_weight_decay", tuple)()}
    muon = "muon" in f"{config['_target_']} {config.get('opt', '')}".lower()
    fallback: tuple[str, ...] = getattr(network, "head_names", ()) if muon else ()
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        bare = parameter.ndim <= 1 or name.endswith(".bias") or matches(name, exempt)
        key = (-scales.get(name, 1.0), matches(name, fallback), bool(decay) and not bare)
        groups.setdefault(key, []).append(parameter)
    out = []
    for scale, other, decayed in sorted(groups):
        group = {"params": groups[scale, other, decayed], "weight_decay": decay * decayed, "scale": -scale}
        out.append(group | ({"use_fallback": True} if other else {}))
    return out


def matches(name: str, patterns: Collection[str]) -> bool:
    """Says whether a parameter, or a module that it lies in, matches one of the patterns."""
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name, f"{p}.*") for p in patterns)


def give_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that begin to learn a momentum of zero, where others of their group have one: torch's
    fused SGD takes that of all or none. Without dampening, the first step is the same with it."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        missing = [p for p in group["params"] if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        if group["fused"] and len(missing) < len(group["params"]):
            for parameter in missing:
                if parameter.requires_grad:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
