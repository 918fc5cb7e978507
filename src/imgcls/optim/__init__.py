"""Optimizers and learning-rate schedules, by config."""

from imgcls.optim.optimizers import build_optimizer, give_momentum, with_rate
from imgcls.optim.schedulers import (
    Schedule,
    Steps,
    build_schedule,
    constant,
    cosine,
    linear,
    multi_step,
    one_cycle,
    plateau,
    wsd,
)

__all__ = [
    "Schedule",
    "Steps",
    "build_optimizer",
    "build_schedule",
    "constant",
    "cosine",
    "give_momentum",
    "linear",
    "multi_step",
    "one_cycle",
    "plateau",
    "with_rate",
    "wsd",
]
