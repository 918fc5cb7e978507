"""The test report: per-class table, confusion matrix and predictions, as files, on the terminal, and in W&B."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from imgcls.data.base import ImageDataset
from imgcls.data.spec import DataSpec

MISTAKES = 32  # the worst ones, with their pictures, go to W&B


@dataclass
class Report:
    """What a test found: metrics by name, and each sample's prediction in the order of the data set."""

    metrics: dict[str, float]
    predictions: pd.DataFrame  # name, target, prediction (class names), confidence, index
    per_class: pd.DataFrame  # class, precision, recall, f1, support
    confusion: np.ndarray  # (K, K) counts: rows are targets, columns predictions


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
    )  # fmt: skip


def write_report(report: Report, folder: Path, spec: DataSpec) -> None:
    """Writes metrics.json, per_class.csv, confusion_matrix.csv and .png, and predictions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(report.metrics, indent=2) + "\n")
    report.per_class.to_csv(folder / "per_class.csv", index=False)
    names = list(spec.class_names)
    pd.DataFrame(report.confusion, index=names, columns=names).to_csv(folder / "confusion_matrix.csv")
    report.predictions.to_csv(folder / "predictions.csv", index=False, errors="surrogateescape")
    draw_confusion(report.confusion, names).savefig(folder / "confusion_matrix.png", dpi=120)


def draw_confusion(confusion: np.ndarray, names: list[str]) -> Figure:
    """Draws the matrix, each row as shares of its class; numbers in the cells up to 20 classes."""
    classes = len(names)
    side = min(max(4.0, 0.45 * classes + 2.5), 24.0)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if classes <= 40 else 6
    step = 1 if classes <= 120 else -(-classes // 120)
    short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
    places = np.arange(0, classes, step)
    axes.set_xticks(places, [short[i] for i in places], rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(places, [short[i] for i in places], fontsize=size, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("Share of each true class")
    if classes <= 20:
        for row, column in np.ndindex(classes, classes):
            if count := confusion[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=size - 1, color=colour)
    return figure


def print_summary(title: str, report: Report, lines: dict[str, str]) -> None:
    """Prints the test table and below it where things are and what to run next."""
    table = Table(show_edge=False, pad_edge=False)
    for name in report.metrics:
        table.add_column(name.removeprefix("test/"), justify="right")
    table.add_row(*(f"{value:.4f}" for value in report.metrics.values()))
    console = Console()
    console.print()
    console.print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    worst = report.per_class.sort_values("f1").head(3)
    weakest = ", ".join(f"{row['class']} (f1 {row['f1']:.3f})" for _, row in worst.iterrows())
    console.print(f"weakest classes: {weakest}", soft_wrap=True, highlight=False, markup=False)
    for name, text in lines.items():
        console.print(f"{name}: {text}", soft_wrap=True, highlight=False, markup=False)


def log_to_wandb(run: Any, report: Report, dataset: ImageDataset, spec: DataSpec) -> None:
    """Logs the confusion matrix, the per-class table and the worst mistakes with their pictures."""
    import wandb

    names = list(spec.class_names)
    code = {name: i for i, name in enumerate(names)}
    target, prediction = ([code[n] for n in report.predictions[column]] for column in ("target", "prediction"))
    wrong = report.predictions[report.predictions["target"] != report.predictions["prediction"]]
    worst = wrong.sort_values("confidence", ascending=False).head(MISTAKES)
    table = wandb.Table(columns=["picture", "target", "prediction", "confidence", "name"])
    for row in worst.to_dict("records"):
        table.add_data(
            wandb.Image(as_array(dataset.picture(row["index"]))),
            row["target"],
            row["prediction"],
            row["confidence"],
            row["name"],
        )
    if len(names) <= 100:  # its table has a row for each cell
        run.log(
            {"test/confusion_matrix": wandb.plot.confusion_matrix(y_true=target, preds=prediction, class_names=names)}
        )
    run.log({
        "test/confusion_picture": wandb.Image(draw_confusion(report.confusion, names)),
        "test/per_class": wandb.Table(dataframe=report.per_class.astype({"class": str})),
        "test/worst_mistakes": table,
    })  # fmt: skip


def as_array(image: Tensor) -> np.ndarray:
    """Returns `image (C, H, W) uint8` as `(H, W)` or `(H, W, 3)`, small ones enlarged so that an eye can see them."""
    enlarge = max(1, 64 // image.shape[-1])
    image = image.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    return (image[0] if image.shape[0] == 1 else torch.einsum("chw->hwc", image[:3])).numpy()
