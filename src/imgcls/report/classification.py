"""Report of a classification test: tables of classes and confusions, worst mistakes, pictures and a page."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from imgcls.data.batch import ImageDataset
from imgcls.report import figures
from imgcls.report.figures import Mistake, reliability
from imgcls.report.label_errors import LabelErrors, find_label_errors, reason_against
from imgcls.report.page import render, table
from imgcls.report.report import Report, optional
from imgcls.spec import DataSpec

if TYPE_CHECKING:
    from wandb import Run

MISTAKES = 16  # are shown with their pictures
PICTURES = {"confusion_picture": "confusion_matrix", "reliability": "reliability", "mistakes": "mistakes"}
Evidence = Callable[[Tensor, Tensor], Tensor]  # images and classes to heat maps


@dataclass
class ClassificationReport(Report):
    """What a test of classes found; `predictions` has name, target, prediction (class names), confidence and
    index."""

    per_class: pd.DataFrame  # class, precision, recall, f1, support
    confusion: np.ndarray  # (K, K) counts: rows are targets, columns predictions
    pairs: pd.DataFrame  # true, predicted, count, share (of the true class), most frequent first
    unscaled: np.ndarray | None  # confidences before the temperature
    images: ImageDataset
    evidence: Evidence
    label_errors: LabelErrors
    mistakes: list[Mistake] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        metrics: dict[str, float],
        tested: dict[str, Tensor],
        images: ImageDataset,
        spec: DataSpec,
        evidence: Evidence,
    ) -> Self:
        """Builds the report from what a test kept of each sample."""
        index, target, prediction = (tested[key].numpy() for key in ("indices", "targets", "predictions"))
        names, classes = np.array(spec.class_names, dtype=object), spec.num_classes
        predictions = pd.DataFrame({"name": [images.name(i) for i in index.tolist()]})
        predictions = predictions.assign(target=names[target], prediction=names[prediction])
        predictions = predictions.assign(confidence=tested["confidences"].numpy(), index=index)
        confusion = np.bincount(target * classes + prediction, minlength=classes**2).reshape(classes, classes)
        per_class = pd.DataFrame({"class": names, **class_scores(confusion)})
        pairs = confused_pairs(confusion, names)
        unscaled = tested["unscaled"].numpy() if "unscaled" in tested else None
        why = reason_against(len(target), classes) or "not looked for: the test kept no probabilities"
        errors = LabelErrors(pd.DataFrame(), why)
        if "probabilities" in tested:
            errors.note = "not found: the log says why"
            with optional("list of label errors"):
                errors = find_label_errors(predictions, target, tested["probabilities"].float().numpy())
        return cls(metrics, predictions, per_class, confusion, pairs, unscaled, images, evidence, errors)

    def right(self) -> np.ndarray:
        """Returns whether each prediction is right."""
        return (self.predictions["target"] == self.predictions["prediction"]).to_numpy()

    def names(self) -> list[str]:
        """Returns the names of the classes."""
        return self.per_class["class"].tolist()

    def weakest(self) -> pd.DataFrame:
        """Returns the classes that the means count, those that an image has or was taken for, by their F1."""
        counted = self.confusion.sum(0) + self.confusion.sum(1) > 0
        return self.per_class[counted].sort_values("f1", kind="stable")

    def write(self, folder: Path) -> None:
        """Writes per_class.csv, confusion_matrix.csv, confused_pairs.csv and label_errors.csv, too."""
        super().write(folder)
        self.per_class.to_csv(folder / "per_class.csv", index=False)
        matrix = pd.DataFrame(self.confusion, index=self.names(), columns=self.names())
        matrix.to_csv(folder / "confusion_matrix.csv")
        self.pairs.to_csv(folder / "confused_pairs.csv", index=False)
        if not self.label_errors.note:
            table = self.label_errors.table
            table.to_csv(folder / "label_errors.csv", index=False, errors="surrogateescape")

    def in_words(self) -> dict[str, str]:
        """Returns the weakest classes, the most confused pairs, and what the temperature changed."""
        metrics, weakest = self.short_metrics(), self.weakest().head(3)
        classes = [f"{row['class']} (f1 {row['f1']:.3f})" for row in weakest.to_dict("records")]
        form = "{true} taken for {predicted} ({count}, {share:.1%})"
        pairs = [form.format_map(pair) for pair in self.pairs.head(3).to_dict("records")]
        words = {"weakest classes": ", ".join(classes), "most confused": ", ".join(pairs)}
        if suspects := len(self.label_errors.table):
            doubt = f" ({self.label_errors.doubt})" if self.label_errors.doubt else ""
            words["likely label errors"] = f"{suspects:,}, see label_errors.csv{doubt}"
        if "temperature" in metrics:
            changes = []
            for name in ("loss", "calibration_error"):
                before, now = metrics[f"{name}_unscaled"], metrics[name]
                changes.append(f"{name.replace('_', ' ')} {before:.4f} → {now:.4f}")
            words["temperature"] = f"{metrics['temperature']:g}: {', '.join(changes)}"
        return {name: text for name, text in words.items() if text}

    def draw(self, folder: Path) -> None:
        """Writes the pictures and the page. What can't be drawn is left out with a line in the log."""
        self.draw_curve(folder)
        self.mistakes = self.worst_mistakes()
        with optional("confusion matrix"):
            figure = figures.draw_confusion(self.confusion, self.names())
            figure.savefig(folder / "confusion_matrix.png", dpi=120, bbox_inches="tight")
        with optional("reliability diagram"):
            bins = reliability(self.predictions["confidence"].to_numpy(), self.right())
            before = None if self.unscaled is None else reliability(self.unscaled, self.right())
            old = self.metrics.get("test/calibration_error_unscaled")
            title = f"Calibration error {self.metrics['test/calibration_error']:.4f}"
            title += "" if old is None else f" ({old:.4f} before scaling)"
            figures.draw_reliability(bins, before, title).savefig(folder / "reliability.png", dpi=120)
        if self.mistakes:
            with optional("sheet of mistakes"):
                figures.draw_mistakes(self.mistakes).savefig(folder / "mistakes.png", dpi=120)
        with optional("page"):
            self.write_page(folder)

    def worst_mistakes(self) -> list[Mistake]:
        """Returns the wrong predictions with the highest confidence, as far as they can be shown."""
        mistakes, images, classes = [], [], []
        wrong = self.predictions[~self.right()].nlargest(MISTAKES, "confidence")
        for name, target, prediction, confidence, index in wrong.itertuples(index=False, name=None):
            with optional(f"picture of {name}"):
                image = self.images.picture(index)
                picture = figures.as_picture(image)
                mistakes.append(Mistake(picture, None, target, prediction, confidence, name))
                images.append(image)
                classes.append(self.names().index(prediction))
        if mistakes:
            with optional("Grad-CAM"), torch.inference_mode(False):
                heats = self.evidence(torch.stack(images), torch.tensor(classes))
                for mistake, heat in zip(mistakes, heats, strict=True):
                    mistake.evidence = figures.under_heat(mistake.picture, heat)
        return mistakes

    def pictured_errors(self) -> list[dict[Hashable, Any]]:
        """Returns the likeliest label errors that can be shown, each with its `picture (H, W, 3) uint8`."""
        rows = []
        for row in self.label_errors.table.head(MISTAKES).to_dict("records"):
            with optional(f"picture of {row['name']}"):
                rows.append({**row, "picture": figures.as_picture(self.images.picture(row["index"]))})
        return rows

    def write_page(self, folder: Path) -> None:
        """Writes index.html: all tables, and the pictures that lie in the folder."""
        named = self.short_metrics()
        metrics = pd.DataFrame({"metric": [name for name in named if not name.endswith("_unscaled")]})
        metrics["value"] = metrics["metric"].map(named)
        if len(metrics) < len(named):
            metrics["before scaling"] = (metrics["metric"] + "_unscaled").map(named)
        pairs = self.pairs.head(20).assign(share=self.pairs["share"].map("{:.1%}".format))
        render(
            "report/classification.html",
            folder / "index.html",
            report=self,
            classes=len(self.per_class),
            wrong=int((~self.right()).sum()),
            metrics=table(metrics),
            pairs=table(pairs, words=2),
            weakest=table(self.weakest().head(100)),
            pictured_errors=self.pictured_errors(),
            pictures={path.stem: path for path in folder.glob("*.png")},
        )

    def log_to_wandb(self, run: "Run", folder: Path) -> None:
        """Logs the confusion matrix, the tables, the worst mistakes, and the pictures in `folder`."""
        import wandb

        with optional("record in W&B"):
            names, found = self.names(), self.predictions
            if len(names) <= 100:  # its table has a row for each cell
                targets, predictions = (found[n].map(names.index).tolist() for n in ("target", "prediction"))
                matrix = wandb.plot.confusion_matrix(y_true=targets, preds=predictions, class_names=names)
                run.log({"test/confusion_matrix": matrix})
            mistakes = wandb.Table(["picture", "evidence", "target", "prediction", "confidence", "name"])
            for one in self.mistakes:
                evidence = None if one.evidence is None else wandb.Image(one.evidence)
                words = (one.target, one.prediction, one.confidence, one.name)
                mistakes.add_data(wandb.Image(one.picture), evidence, *words)
            pairs, per_class = self.pairs.astype({"true": str, "predicted": str}), self.per_class
            tables = {"per_class": per_class.astype({"class": str}), "confused_pairs": pairs}
            content = {f"test/{name}": wandb.Table(dataframe=frame) for name, frame in tables.items()}
            content["test/worst_mistakes"] = mistakes
            files = {f"test/{key}": folder / f"{name}.png" for key, name in PICTURES.items()}
            run.log({key: wandb.Image(str(path)) for key, path in files.items() if path.is_file()} | content)


def class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Returns precision, recall, F1 and support of each class, 0 where there is nothing to divide by."""
    right, predicted, there = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    parts = {"precision": (right, predicted), "recall": (right, there), "f1": (2 * right, predicted + there)}
    scores = {name: part / np.maximum(whole, 1) for name, (part, whole) in parts.items()}
    return scores | {"support": there}


def confused_pairs(confusion: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """Returns how often and in what share of its samples a class was taken for another, most often first."""
    wrong = confusion - np.diag(np.diag(confusion))
    true, predicted = wrong.nonzero()
    pairs = pd.DataFrame({"true": names[true], "predicted": names[predicted]})
    pairs["count"] = wrong[true, predicted]
    pairs["share"] = pairs["count"] / confusion.sum(1)[true]
    return pairs.sort_values(["count", "share"], ascending=False, kind="stable", ignore_index=True)
