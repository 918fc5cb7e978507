"""Loggers: a CSV with one row an epoch, and Weights & Biases that never asks and never stops a run."""

import csv
import functools
import logging
import netrc
import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imgcls.errors import UserError

log = logging.getLogger(__name__)


class EpochCSV(Logger):
    """Writes `metrics.csv`: one row an epoch with all that was logged of it, at the epoch's end."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory has the whole config beside this file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if not name.startswith("test/")}
        if "epoch" not in values or len(values) < 2:
            return
        epoch = int(values.pop("epoch"))
        row = self.rows.setdefault(epoch, {})
        row |= {"epoch": epoch, "step": step, **values}
        if "train/loss" in values:  # the last that is logged of an epoch
            self.save()

    @rank_zero_only
    def save(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))
        partial.replace(self.path)


def wandb_logger(
    save_dir: str,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    timeout: float = 30.0,
    **options: Any,
) -> Logger:
    """Returns the logger of Weights & Biases, its run begun.

    Args:
        mode: "auto": what WANDB_MODE says, else online where there is a key, else offline.
        timeout: seconds to wait for the server before the run goes on offline.
        options: to `wandb.init`: project, group, name, tags, notes, job_type, id, resume.
    """
    import wandb

    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE", "")
        mode = chosen if chosen in ("online", "offline", "disabled") else "online" if _has_key() else "offline"  # type: ignore[assignment]
    unknown = set(options) - {"project", "group", "name", "tags", "notes", "job_type", "id", "resume", "entity"}
    if unknown:
        raise UserError(
            f"logger.wandb.{min(unknown)}: expected project, entity, group, name, tags, notes, job_type, id or resume"
        )
    if getattr(rank_zero_only, "rank", 0) != 0:
        return WandbLogger(save_dir=save_dir)
    settings = wandb.Settings(init_timeout=timeout, silent=True)
    begin: Any = functools.partial(wandb.init, dir=save_dir, settings=settings, reinit="finish_previous", **options)
    try:
        run = begin(mode=mode)
    except (wandb.Error, OSError) as error:
        log.warning("Weights & Biases: %s; the run is logged offline", " ".join(str(error).split()))
        run = begin(mode="offline")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(save_dir=save_dir, experiment=run)


def _has_key() -> bool:
    """Whether credentials are at hand; never asks for them and never talks to the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any(
            entry is not None
            for entry in (netrc.netrc().authenticators(host) for host in netrc.netrc().hosts if "wandb" in host)
        )
    except (OSError, netrc.NetrcParseError):
        return False
