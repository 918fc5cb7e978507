"""Test report, its numbers: builds tables from the predictions of a test, and writes them as files."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
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
    per_class = dict(zip(("precision", "recall", "f1", "support"), of_classes, strict=True))
    confusion = confusion_matrix(target, prediction, labels=labels)
    return Report(
        metrics,
        predictions,
        pd.DataFrame({"class": names, **per_class}),
        confusion,
        confused_pairs(confusion, names),
        gathered["unscaled"].numpy() if "unscaled" in gathered else None,
    )


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


@contextmanager
def optional(part: str) -> Iterator[None]:
    """Surrounds a part that a report can do without: its failure is a line in the log."""
    try:
        yield
    except Exception as error:
        log.warning("test report: no %s (%s)", part, " ".join(str(error).split()) or type(error).__name__)
