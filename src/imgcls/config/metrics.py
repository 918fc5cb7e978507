"""Metrics that a config names."""

from collections.abc import Sequence
from typing import Annotated

from omegaconf import OmegaConf
from pydantic import Field

Metrics = Annotated[str | list[str], Field(min_length=1)]  # the first of several says which epoch is best


def first(metric: str | Sequence[str]) -> str | None:
    """Returns the metric that is optimised, or the first of several."""
    return metric if isinstance(metric, str) else next(iter(metric), None)


# What conf/ says of callbacks that watch a metric: monitor: ${first_metric:${optimized_metric}}
OmegaConf.register_resolver("first_metric", first, replace=True)
