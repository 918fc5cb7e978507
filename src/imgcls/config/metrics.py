"""Metrics that a config names: which is optimised, and which way each is better."""

from collections.abc import Sequence
from typing import Annotated

from omegaconf import OmegaConf
from pydantic import Field

Metrics = Annotated[str | list[str], Field(min_length=1)]  # the first of several says which epoch is best


def direction(metric: str | None) -> str:
    """Returns "min" for what is better when it is small, else "max" (for no metric too)."""
    return "min" if str(metric).endswith(("loss", "loss_step", "calibration_error")) else "max"


def first(metric: str | Sequence[str]) -> str | None:
    """Returns the metric that is optimised, or the first of several."""
    return metric if isinstance(metric, str) else next(iter(metric), None)


# What conf/ says of callbacks that watch a metric: monitor: ${first_metric:${optimized_metric}}
OmegaConf.register_resolver("first_metric", first, replace=True)
OmegaConf.register_resolver("direction", direction, replace=True)
