"""What was best in a run, by which metric, and what watches one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imgcls.config.training import Metrics, Node, TrainerConfig
from imgcls.errors import UserError, nearest


def direction(metric: str | None) -> str:
    """Returns "min" for what is better when it is small, else "max" (for no metric too)."""
    return "min" if str(metric).endswith(("loss", "loss_step", "calibration_error")) else "max"


def first(metric: str | Sequence[str]) -> str | None:
    """Returns the metric that is optimised, or the first of several."""
    return metric if isinstance(metric, str) else next(iter(metric), None)


# What conf/ says of callbacks that watch a metric: monitor: ${first_metric:${optimized_metric}}
OmegaConf.register_resolver("first_metric", first, replace=True)
OmegaConf.register_resolver("direction", direction, replace=True)


def optimised(run_dir: Path, metric: str | list[str]) -> float | list[float] | None:
    """Returns the best value of a metric; of several, the values of the epoch that was best by the first of them."""
    names = [metric] if isinstance(metric, str) else metric
    best = best_epoch(run_dir, names[0])
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


def check_monitored(
    optimized: Metrics, callbacks: list[Any], scheduler: Node, trainer: TrainerConfig, names: set[str]
) -> None:
    """Raises UserError where a metric is watched that is never logged, or in the wrong direction.

    Args:
        optimized: `optimized_metric`, which the others follow by default.
        names: the metrics that are logged.
    """
    watched = [
        (f"callbacks: {type(c).__name__}.", c.monitor, c.mode)
        for c in callbacks
        if getattr(c, "monitor", None)
    ]
    if schedule := scheduler.get("monitor"):
        watched.append(("scheduler.", schedule, scheduler.get("mode")))
    named = [
        ("optimized_metric", name) for name in ([optimized] if isinstance(optimized, str) else optimized)
    ]
    named += [(f"{where}monitor", name) for where, name, _ in watched]
    for key, name in named:
        if name not in names:
            raise UserError(f"{key}={name}: no such metric is logged; {nearest(name, names)}")
        if name.startswith("val/") and (why := never_validated(trainer)):
            raise UserError(
                f"{key}={name}: with {why} nothing is validated; watch train/loss, or let it validate"
            )
    for keeper in callbacks:
        if getattr(keeper, "save_top_k", 1) not in (0, 1) and "{" not in (keeper.filename or "{"):
            raise UserError(
                f"callbacks: ModelCheckpoint.save_top_k={keeper.save_top_k} with filename={keeper.filename}: each file "
                "needs a name of its own, such as callbacks.checkpoint.filename='{epoch:03d}'"
            )
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
