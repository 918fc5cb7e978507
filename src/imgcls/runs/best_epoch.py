"""The best epoch of a run, by the metric that it optimised."""

from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.config.metrics import direction

if TYPE_CHECKING:
    import pandas as pd


def optimised(run_dir: Path, metric: str | list[str]) -> float | list[float] | None:
    """Returns the best value of a metric; of several, those of the epoch that was best by the first."""
    names = [metric] if isinstance(metric, str) else metric
    best = best_epoch(run_dir, names[0])
    values = [best[f"best/{name}"] for name in names if f"best/{name}" in best]
    if len(values) < len(names):
        return None
    return values[0] if isinstance(metric, str) else values


def best_epoch(run_dir: Path, monitor: str) -> dict[str, float]:
    """Returns as `best/…` all metrics of the epoch where `monitor` was best; none without a metrics.csv."""
    import pandas as pd

    if not (run_dir / "metrics.csv").is_file():
        return {}
    table = pd.read_csv(run_dir / "metrics.csv")
    best = best_row(table, monitor)
    measured = {} if best is None else table.iloc[best].dropna().to_dict()
    return {f"best/{name}": float(value) for name, value in measured.items()}


def best_row(table: "pd.DataFrame", metric: str | None) -> int | None:
    """Returns the row of a metrics.csv where a metric was best, or None where it was never measured."""
    if metric not in table or table[metric].isna().all():
        return None
    return int(table[metric].argmin() if direction(metric) == "min" else table[metric].argmax())
