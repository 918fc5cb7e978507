"""Report of a test: its numbers, the predictions, and where a task has them pictures and words."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from imgcls.data.batch import ImageDataset
from imgcls.report.origin import Origin

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What a test found: metrics by name, and each sample's prediction in the order of the data set. A task
    whose tests show more has a subclass."""

    metrics: dict[str, float]
    predictions: pd.DataFrame  # a row for each sample, with its name
    how: dict[str, Any] = field(default_factory=dict, kw_only=True)  # settings of the test, where it has any
    origin: Origin = field(default_factory=Origin, kw_only=True)  # of the network

    def short_metrics(self) -> dict[str, float]:
        """Returns the metrics by their names without `test/`."""
        return {name.removeprefix("test/"): value for name, value in self.metrics.items()}

    def write(self, folder: Path) -> None:
        """Writes metrics.json and predictions.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(self.metrics | self.how, indent=2) + "\n")
        self.predictions.to_csv(folder / "predictions.csv", index=False, errors="surrogateescape")

    def settings(self) -> dict[str, str]:
        """Returns words for the settings of the test, by name."""
        return {name.replace("_", " "): str(value) for name, value in self.how.items()}

    def draw(self, folder: Path) -> None:
        """Writes pictures and a page into the folder, as far as they can be drawn."""

    def draw_curve(self, folder: Path) -> None:
        """Writes curve.png: loss and metric of the training, over its epochs."""
        from imgcls.report.figures import draw_training

        if self.origin.logged is not None and len(self.origin.logged) > 1:
            with optional("training curve"):
                figure = draw_training(self.origin.logged, self.origin.metric)
                figure.savefig(folder / "curve.png", dpi=120)

    def in_words(self) -> dict[str, str]:
        """Returns what the terminal shows beside the table of metrics, by name."""
        return {}

    def log_to_wandb(self, run: "Run", folder: Path) -> None:
        """Logs tables, and the pictures that lie in `folder`, to W&B."""


pd.set_option("mode.string_storage", "python")  # Arrow's strings refuse names that are no UTF-8


def table_of(tested: Mapping[str, Tensor], images: ImageDataset) -> pd.DataFrame:
    """Returns a row for each sample that a test kept: its name, and each value in columns of its own."""
    columns: dict[str, object] = {"name": [images.name(i) for i in tested["indices"].tolist()]}
    for name, values in tested.items():
        flat = values.flatten(1).float().numpy() if values.ndim > 1 else None
        if flat is None:
            columns[name] = values.numpy()
        else:
            columns |= {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
    return pd.DataFrame(columns)


def print_summary(title: str, report: Report, lines: dict[str, str]) -> None:
    """Prints the test table, the report in words, and `lines`: where things are and what to run next."""
    metrics = report.short_metrics()
    shown = [name for name in metrics if name != "temperature" and not name.endswith("_unscaled")]
    table = Table(*(Column(name, justify="right") for name in shown), show_edge=False, pad_edge=False)
    table.add_row(*(f"{metrics[name]:.4f}" for name in shown))
    console = Console()
    console.print()
    console.print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    print_lines(report.settings() | report.in_words() | lines)


def print_lines(lines: dict[str, str]) -> None:
    """Prints lines by name."""
    console = Console()
    for name, text in lines.items():
        console.print(f"{name}: {text}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def optional(part: str) -> Iterator[None]:
    """Surrounds a part that a report can do without: its failure is a line in the log."""
    try:
        yield
    except Exception as error:
        log.warning("test report: no %s (%s)", part, " ".join(str(error).split()) or type(error).__name__)
