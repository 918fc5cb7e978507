"""The best epoch of a run: which it is, and whether the metric by which it is chosen is logged."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.config.training import Metrics, Node, TrainerConfig, direction
from imgcls.errors import UserError, nearest

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


def check_monitored(
    optimized: Metrics, callbacks: list[Any], scheduler: Node, trainer: TrainerConfig, names: set[str]
) -> None:
    """Raises UserError where a metric is watched that is not among the `names` of those that are logged, or
    in the wrong direction; `optimized` is `optimized_metric`, which the others follow by default."""
    watchers = [callback for callback in callbacks if getattr(callback, "monitor", None)]
    watched = [(f"callbacks: {type(one).__name__}.", one.monitor, one.mode) for one in watchers]
    if schedule := scheduler.get("monitor"):
        watched.append(("scheduler.", schedule, scheduler.get("mode")))
    keys = [("optimized_metric", name) for name in ([optimized] if isinstance(optimized, str) else optimized)]
    keys += [(f"{where}monitor", name) for where, name, _ in watched]
    for key, name in keys:
        if name not in names:
            raise UserError(f"{key}={name}: no such metric is logged; {nearest(name, names)}")
        if name.startswith("val/") and (why := never_validated(trainer)):
            text = f"{key}={name}: with {why} nothing is validated"
            raise UserError(f"{text}; watch train/loss, or let it validate")
    for keeper in callbacks:  # several files are kept
        if getattr(keeper, "save_top_k", 1) not in (0, 1) and "{" not in (keeper.filename or "{"):
            given = f"ModelCheckpoint.save_top_k={keeper.save_top_k} with filename={keeper.filename}"
            advice = "each file needs a name of its own, such as callbacks.checkpoint.filename='{epoch:03d}'"
            raise UserError(f"callbacks: {given}: {advice}")
    for where, name, mode in watched:
        if mode is not None and mode != direction(name):
            raise UserError(f"{where}mode={mode}: {name} is better the other way; set mode={direction(name)}")


def never_validated(trainer: TrainerConfig) -> str | None:
    """Returns the setting of conf/trainer by which no epoch is validated, if there is one."""
    for key in ("limit_val_batches", "max_epochs", "max_steps"):
        if getattr(trainer, key) == 0:
            return f"trainer.{key}=0"
    every, epochs = trainer.check_val_every_n_epoch or 1, trainer.max_epochs or -1
    return f"trainer.check_val_every_n_epoch={every} in {epochs} epochs" if 0 < epochs < every else None
