"""Test report: tables, files and a summary; the worst mistakes, index.html and PNG files; tables in W&B."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Column, Table
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from imgcls.data.batch import ImageDataset
from imgcls.report import figures
from imgcls.report.figures import Mistake, reliability
from imgcls.report.heatmaps import grad_cam
from imgcls.report.page import render, table
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)
MISTAKES = 16  # are shown with their pictures
PICTURES = {"confusion_picture": "confusion_matrix", "reliability": "reliability", "mistakes": "mistakes"}


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


def worst_mistakes(report: Report, classifier: ImageClassifier, dataset: ImageDataset) -> list[Mistake]:
    """Returns the wrong predictions with the highest confidence, as far as they can be shown."""
    mistakes, images, classes = [], [], []
    wrong = report.predictions[~report.right()].nlargest(MISTAKES, "confidence")
    for name, target, prediction, confidence, index in wrong.itertuples(index=False, name=None):
        with optional(f"picture of {name}"):
            image = dataset.picture(index)
            picture = figures.as_picture(image)
            mistakes.append(Mistake(picture, None, target, prediction, confidence, name))
            images.append(image)
            classes.append(classifier.spec.class_names.index(prediction))
    if mistakes:
        with optional("Grad-CAM"), torch.inference_mode(False):
            device = classifier.device
            batch = classifier.normalise(torch.stack(images).to(device))
            heats = grad_cam(classifier.network, batch, torch.tensor(classes, device=device)).cpu()
            for mistake, heat in zip(mistakes, heats, strict=True):
                mistake.evidence = figures.under_heat(mistake.picture, heat)
    return mistakes


def draw_report(
    report: Report, folder: Path, spec: DataSpec, classifier: ImageClassifier, dataset: ImageDataset
) -> None:
    """Writes the pictures and the page. What can't be drawn is left out with a line in the log."""
    report.mistakes = worst_mistakes(report, classifier, dataset)
    with optional("confusion matrix"):
        figure = figures.draw_confusion(report.confusion, list(spec.class_names))
        figure.savefig(folder / "confusion_matrix.png", dpi=120, bbox_inches="tight")
    with optional("reliability diagram"):
        bins = reliability(report.predictions["confidence"].to_numpy(), report.right())
        before = None if report.unscaled is None else reliability(report.unscaled, report.right())
        old = report.metrics.get("test/calibration_error_unscaled")
        title = f"Calibration error {report.metrics['test/calibration_error']:.4f}"
        title += "" if old is None else f" ({old:.4f} before scaling)"
        figures.draw_reliability(bins, before, title).savefig(folder / "reliability.png", dpi=120)
    if report.mistakes:
        with optional("sheet of mistakes"):
            figures.draw_mistakes(report.mistakes).savefig(folder / "mistakes.png", dpi=120)
    with optional("page"):
        write_page(report, folder)


def write_page(report: Report, folder: Path) -> None:
    """Writes index.html: all tables, and the pictures that lie in the folder."""
    named = report.short_metrics()
    metrics = pd.DataFrame({"metric": [name for name in named if not name.endswith("_unscaled")]})
    metrics["value"] = metrics["metric"].map(named)
    if len(metrics) < len(named):
        metrics["before scaling"] = (metrics["metric"] + "_unscaled").map(named)
    pairs = report.pairs.head(20).assign(share=report.pairs["share"].map("{:.1%}".format))
    weakest = report.per_class.sort_values("f1", kind="stable").head(100)
    tables = {"metrics": table(metrics), "pairs": table(pairs, words=2), "weakest": table(weakest)}
    counts = {"classes": len(report.per_class), "wrong": int((~report.right()).sum())}
    pictures = {path.stem: path for path in folder.glob("*.png")}
    path = folder / "index.html"
    render("report/test_report.html", path, report=report, pictures=pictures, **tables, **counts)


def log_to_wandb(run: "Run", report: Report, folder: Path, spec: DataSpec) -> None:
    """Logs the confusion matrix, the tables, the worst mistakes, and the pictures that lie in `folder`."""
    import wandb

    with optional("record in W&B"):
        if spec.num_classes <= 100:  # its table has a row for each cell
            names, found = list(spec.class_names), report.predictions
            targets, predictions = (found[n].map(names.index).tolist() for n in ("target", "prediction"))
            matrix = wandb.plot.confusion_matrix(y_true=targets, preds=predictions, class_names=names)
            run.log({"test/confusion_matrix": matrix})
        mistakes = wandb.Table(["picture", "evidence", "target", "prediction", "confidence", "name"])
        for one in report.mistakes:
            evidence = None if one.evidence is None else wandb.Image(one.evidence)
            words = (one.target, one.prediction, one.confidence, one.name)
            mistakes.add_data(wandb.Image(one.picture), evidence, *words)
        pairs, per_class = report.pairs.astype({"true": str, "predicted": str}), report.per_class
        tables = {"per_class": per_class.astype({"class": str}), "confused_pairs": pairs}
        content = {f"test/{name}": wandb.Table(dataframe=frame) for name, frame in tables.items()}
        content["test/worst_mistakes"] = mistakes
        files = {f"test/{key}": folder / f"{name}.png" for key, name in PICTURES.items()}
        run.log({key: wandb.Image(str(path)) for key, path in files.items() if path.is_file()} | content)
