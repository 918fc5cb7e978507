"""Test report, its numbers: builds tables from the predictions of a test, writes files, prints a summary."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Column, Table
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from imgcls.data.batch import ImageDataset
from imgcls.report.figures import Mistake
from imgcls.spec import DataSpec

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What a test found: metrics by name, and each sample's prediction in the order of the data set."""

    metrics: dict[str, float]
    predictions: pd.DataFrame  # name, target, prediction (class names), confidence, index
    per_class: pd.DataFrame  # class, precision, recall, f1, support
    confusion: np.ndarray  # (K, K) counts: rows are targets, columns predictions
    pairs: pd.DataFrame  # true, predicted, count, share (of the true class), most frequent first
    unscaled: np.ndarray | None = None  # confidences before the temperature
    mistakes: list[Mistake] = field(default_factory=list)

    def right(self) -> np.ndarray:
        """Returns whether each prediction is right."""
        return (self.predictions["target"] == self.predictions["prediction"]).to_numpy()

    def short_metrics(self) -> dict[str, float]:
        """Returns the metrics by their names without `test/`."""
        return {name.removeprefix("test/"): value for name, value in self.metrics.items()}


def make_report(
    metrics: dict[str, float], gathered: dict[str, Tensor], dataset: ImageDataset, spec: DataSpec
) -> Report:
    """Builds the report from what `Predictions.compute` returned."""
    index, target, prediction = (gathered[key].numpy() for key in ("indices", "targets", "predictions"))
    names, labels = np.array(spec.class_names, dtype=object), np.arange(spec.num_classes)
    predictions = pd.DataFrame({"name": [dataset.name(i) for i in index.tolist()]})
    predictions = predictions.assign(target=names[target], prediction=names[prediction])
    predictions = predictions.assign(confidence=gathered["confidences"].numpy(), index=index)
    of_classes = precision_recall_fscore_support(target, prediction, labels=labels, zero_division=0.0)
    scores = dict(zip(("precision", "recall", "f1", "support"), of_classes, strict=True))
    confusion = confusion_matrix(target, prediction, labels=labels)
    per_class, pairs = pd.DataFrame({"class": names, **scores}), confused_pairs(confusion, names)
    unscaled = gathered["unscaled"].numpy() if "unscaled" in gathered else None
    return Report(metrics, predictions, per_class, confusion, pairs, unscaled)


def confused_pairs(confusion: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """Returns how often and in what share of its samples a class was taken for another, most often first."""
    wrong = confusion - np.diag(np.diag(confusion))
    true, predicted = wrong.nonzero()
    pairs = pd.DataFrame({"true": names[true], "predicted": names[predicted]})
    pairs["count"] = wrong[true, predicted]
    pairs["share"] = pairs["count"] / confusion.sum(1)[true]
    return pairs.sort_values(["count", "share"], ascending=False, kind="stable", ignore_index=True)


def write_report(report: Report, folder: Path, spec: DataSpec) -> None:
    """Writes metrics.json, per_class.csv, confusion_matrix.csv, confused_pairs.csv and predictions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(report.metrics, indent=2) + "\n")
    report.per_class.to_csv(folder / "per_class.csv", index=False)
    names = list(spec.class_names)
    pd.DataFrame(report.confusion, index=names, columns=names).to_csv(folder / "confusion_matrix.csv")
    report.pairs.to_csv(folder / "confused_pairs.csv", index=False)
    report.predictions.to_csv(folder / "predictions.csv", index=False, errors="surrogateescape")


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
    for name, text in (in_words(report) | lines).items():
        console.print(f"{name}: {text}", soft_wrap=True, highlight=False, markup=False)


def in_words(report: Report) -> dict[str, str]:
    """Returns the weakest classes, the most confused pairs, and what the temperature changed."""
    metrics, weakest = report.short_metrics(), report.per_class.sort_values("f1").head(3)
    classes = [f"{row['class']} (f1 {row['f1']:.3f})" for row in weakest.to_dict("records")]
    form = "{true} taken for {predicted} ({count}, {share:.1%})"
    pairs = [form.format_map(pair) for pair in report.pairs.head(3).to_dict("records")]
    words = {"weakest classes": ", ".join(classes), "most confused": ", ".join(pairs)}
    if "temperature" in metrics:
        changes = []
        for name in ("loss", "calibration_error"):
            before, now = metrics[f"{name}_unscaled"], metrics[name]
            changes.append(f"{name.replace('_', ' ')} {before:.4f} → {now:.4f}")
        words["temperature"] = f"{metrics['temperature']:g}: {', '.join(changes)}"
    return {name: text for name, text in words.items() if text}


@contextmanager
def optional(part: str) -> Iterator[None]:
    """Surrounds a part that a report can do without: its failure is a line in the log."""
    try:
        yield
    except Exception as error:
        log.warning("test report: no %s (%s)", part, " ".join(str(error).split()) or type(error).__name__)
