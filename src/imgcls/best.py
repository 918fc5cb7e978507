"""What was best in a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

Metrics = Annotated[str | list[str], Field(min_length=1)]  # of optimized_metric; the first of several says what is best


def direction(metric: str) -> str:
    """Returns "min" for what is better when it is small, else "max"."""
    return "min" if metric.endswith(("loss", "loss_step", "calibration_error")) else "max"


def optimised(
    run_dir: Path, metric: str | list[str], last: Mapping[str, Any] | None = None
) -> float | list[float] | None:
    """Returns the best value of a metric; of several, the values of the epoch that was best by the first of them.
    Without a metrics.csv it is what was logged `last`."""
    names = [metric] if isinstance(metric, str) else metric
    best = best_epoch(run_dir, names[0]) or {f"best/{name}": float(value) for name, value in (last or {}).items()}
    values = [best[f"best/{name}"] for name in names if f"best/{name}" in best]
    if len(values) < len(names):
        return None
    return values[0] if isinstance(metric, str) else values


def best_epoch(run_dir: Path, monitor: str) -> dict[str, float]:
    """Returns all that was measured in the epoch where `monitor` was best, as `best/…`; empty without a metrics.csv."""
    import pandas as pd

    path = run_dir / "metrics.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path)
    if monitor not in table or table[monitor].isna().all():
        return {}
    best = table[monitor].argmin() if direction(monitor) == "min" else table[monitor].argmax()
    return {f"best/{name}": float(value) for name, value in table.iloc[int(best)].dropna().items()}
