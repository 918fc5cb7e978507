"""The test report: tables, predictions, pictures and a page, as files, on the terminal, and in W&B."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from imgcls.data.batch import ImageDataset
from imgcls.report.figures import Mistake
from imgcls.report.page import optional
from imgcls.spec import DataSpec

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What a test found: metrics by name, and each sample's prediction in the order of the data set."""

    metrics: dict[str, float]
    predictions: pd.DataFrame  # name, target, prediction (class names), confidence, index
    per_class: pd.DataFrame  # class, precision, recall, f1, support
    confusion: np.ndarray  # (K, K) counts: rows are targets, columns predictions
    pairs: (
        pd.DataFrame
    )  # true, predicted, count, share (of the true class): who is taken for whom, most first
    unscaled: np.ndarray | None = None  # confidences before the temperature
    mistakes: list[Mistake] = field(default_factory=list)

    def right(self) -> np.ndarray:
        """Returns whether each prediction is right."""
        return (self.predictions["target"] == self.predictions["prediction"]).to_numpy()


def make_report(
    metrics: dict[str, float], gathered: dict[str, Tensor], dataset: ImageDataset, spec: DataSpec
) -> Report:
    """Builds the report from what `Predictions.compute` returned."""
    index, target, prediction = (gathered[k].numpy() for k in ("indices", "targets", "predictions"))
    names, classes = np.array(spec.class_names, dtype=object), spec.num_classes
    confusion = np.bincount(target * classes + prediction, minlength=classes**2).reshape(classes, classes)
    precision, recall, f1, support = precision_recall_fscore_support(
        target, prediction, labels=np.arange(classes), zero_division=0.0
    )
    return Report(
        metrics,
        pd.DataFrame({
            "name": [dataset.name(i) for i in index.tolist()], "target": names[target], "prediction": names[prediction],
            "confidence": gathered["confidences"].numpy(), "index": index,
        }),
        pd.DataFrame({"class": names, "precision": precision, "recall": recall, "f1": f1, "support": support}),
        confusion,
        confused_pairs(confusion, names),
        gathered["unscaled"].numpy() if "unscaled" in gathered else None,
    )  # fmt: skip


def confused_pairs(confusion: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """Returns how often and in what share of its samples a class was taken for another, most often first."""
    wrong = confusion - np.diag(np.diag(confusion))
    true, predicted = wrong.nonzero()
    count = wrong[true, predicted]
    pairs = {
        "true": names[true],
        "predicted": names[predicted],
        "count": count,
        "share": count / confusion.sum(1)[true],
    }
    return pd.DataFrame(pairs).sort_values(
        ["count", "share"], ascending=False, kind="stable", ignore_index=True
    )


def write_report(report: Report, folder: Path, spec: DataSpec) -> None:
    """Writes the numbers: metrics.json, per_class.csv, confusion_matrix.csv, confused_pairs.csv, predictions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(report.metrics, indent=2) + "\n")
    report.per_class.to_csv(folder / "per_class.csv", index=False)
    names = list(spec.class_names)
    pd.DataFrame(report.confusion, index=names, columns=names).to_csv(folder / "confusion_matrix.csv")
    report.pairs.to_csv(folder / "confused_pairs.csv", index=False)
    report.predictions.to_csv(folder / "predictions.csv", index=False, errors="surrogateescape")


def print_summary(title: str, report: Report, lines: dict[str, str]) -> None:
    """Prints the test table and below it where things are and what to run next."""
    named = {name.removeprefix("test/"): value for name, value in report.metrics.items()}
    shown = {
        name: value
        for name, value in named.items()
        if name != "temperature" and not name.endswith("_unscaled")
    }
    table = Table(show_edge=False, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.4f}" for value in shown.values()))
    worst = report.per_class.sort_values("f1").head(3)
    said = {
        "weakest classes": ", ".join(f"{row['class']} (f1 {row['f1']:.3f})" for _, row in worst.iterrows())
    }
    if len(report.pairs):
        pairs = report.pairs.head(3).to_dict("records")
        said["most confused"] = ", ".join(
            f"{pair['true']} taken for {pair['predicted']} ({pair['count']}, {pair['share']:.1%})"
            for pair in pairs
        )
    if "temperature" in named:
        changes = (
            f"{name.replace('_', ' ')} {named[f'{name}_unscaled']:.4f} → {named[name]:.4f}"
            for name in ("loss", "calibration_error")
        )
        said["temperature"] = f"{named['temperature']:g}: {', '.join(changes)}"
    console = Console()
    console.print()
    console.print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for name, text in (said | lines).items():
        console.print(f"{name}: {text}", soft_wrap=True, highlight=False, markup=False)


def log_to_wandb(run: Any, report: Report, folder: Path, spec: DataSpec) -> None:
    """Logs the confusion matrix, the tables, the worst mistakes with their pictures, and the pictures in `folder`."""
    import wandb

    names = list(spec.class_names)
    code = {name: i for i, name in enumerate(names)}
    target, prediction = (
        [code[n] for n in report.predictions[column]] for column in ("target", "prediction")
    )
    pictures = {"confusion_picture": "confusion_matrix", "reliability": "reliability", "mistakes": "mistakes"}
    shown = {f"test/{key}": folder / f"{name}.png" for key, name in pictures.items()}
    with optional("record in W&B"):
        table = wandb.Table(columns=["picture", "evidence", "target", "prediction", "confidence", "name"])
        for mistake in report.mistakes:
            evidence = None if mistake.evidence is None else wandb.Image(mistake.evidence)
            words = (mistake.target, mistake.prediction, mistake.confidence, mistake.name)
            table.add_data(wandb.Image(mistake.picture), evidence, *words)
        if len(names) <= 100:  # its table has a row for each cell
            matrix = wandb.plot.confusion_matrix(y_true=target, preds=prediction, class_names=names)
            run.log({"test/confusion_matrix": matrix})
        run.log({
            **{key: wandb.Image(str(path)) for key, path in shown.items() if path.is_file()},
            "test/per_class": wandb.Table(dataframe=report.per_class.astype({"class": str})),
            "test/confused_pairs": wandb.Table(dataframe=report.pairs.astype({"true": str, "predicted": str})),
            "test/worst_mistakes": table,
        })  # fmt: skip
