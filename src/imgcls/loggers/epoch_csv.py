"""EpochCSV logger: writes metrics.csv, one row per epoch."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class EpochCSV(Logger):
    """Writes `metrics.csv` at the end of each epoch: one row with all values that were logged in it."""

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
    def keep(self, epochs: int) -> None:
        """Reads the rows of the first `epochs` epochs from the file: a run goes on after them."""
        self.rows = {}
        if epochs and self.path.is_file():
            with self.path.open(newline="") as file:
                rows = {int(row["epoch"]): row for row in csv.DictReader(file)}
            self.rows = {epoch: row for epoch, row in rows.items() if epoch < epochs}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory has the whole config beside this file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if not name.startswith("test/")}
        if "epoch" not in values or len(values) < 2:
            return
        epoch = int(values.pop("epoch"))
        self.rows.setdefault(epoch, {}).update({"epoch": epoch, "step": step, **values})
        if "train/loss" in values:  # the last that is logged of an epoch
            self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:  # Lightning saves before it begins, too
            return
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))
        partial.replace(self.path)
