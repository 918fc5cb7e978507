"""Report of a test of several labels: tables of labels, their curves, what comes together, worst mistakes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_recall_fscore_support
from torch import Tensor

from imgcls.data.batch import ImageDataset
from imgcls.report import figures
from imgcls.report.page import render, table
from imgcls.report.report import Report, optional
from imgcls.spec import DataSpec

if TYPE_CHECKING:
    from wandb import Run

MISTAKES = 16  # are shown with their pictures
SHOWN = 100  # labels, at most, in the page and its figures: the weakest
NAMED = 5  # labels of a mistake, at most


class LabelMistake(NamedTuple):
    """An image with wrong labels; of these there are the names with their probabilities, the worst first."""

    picture: np.ndarray  # (H, W, 3) uint8
    missed: list[tuple[str, float]]
    wrong: list[tuple[str, float]]  # given, but not there
    loss: float
    name: str


@dataclass
class MultiLabelReport(Report):
    """What a test of several labels found; `predictions` has name, targets and predictions (names of labels
    divided by `|`), loss and index."""

    per_label: pd.DataFrame  # label, average_precision, precision, recall, f1, threshold and counts
    targets: np.ndarray  # (N, K) bool
    probabilities: np.ndarray  # (N, K) float32
    given: np.ndarray  # (N, K) bool: the labels above their thresholds
    images: ImageDataset
    mistakes: list[LabelMistake] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        metrics: dict[str, float],
        tested: dict[str, Tensor],
        images: ImageDataset,
        spec: DataSpec,
        thresholds: list[float],
    ) -> Self:
        """Builds the report from what a test kept of each sample."""
        names, index = np.array(spec.class_names, dtype=object), tested["indices"].numpy()
        targets, probabilities = tested["targets"].numpy().astype(bool), tested["probabilities"].numpy()
        given = probabilities > np.array(thresholds, dtype=np.float32)
        predictions = pd.DataFrame({"name": [images.name(i) for i in index.tolist()]})
        for column, rows in (("targets", targets), ("predictions", given)):
            predictions[column] = ["|".join(names[row]) for row in rows]
        predictions = predictions.assign(loss=tested["losses"].numpy(), index=index)
        of_labels = precision_recall_fscore_support(targets, given, average=None, zero_division=0.0)
        scores = dict(zip(("precision", "recall", "f1"), of_labels, strict=False))
        found = [average_precision(*columns) for columns in zip(targets.T, probabilities.T, strict=True)]
        per_label = pd.DataFrame({"label": names, "average_precision": found, **scores})
        per_label = per_label.assign(threshold=thresholds, support=targets.sum(0))
        per_label = per_label.assign(missed=(targets & ~given).sum(0), wrong=(given & ~targets).sum(0))
        return cls(metrics, predictions, per_label, targets, probabilities, given, images)

    def names(self) -> list[str]:
        """Returns the names of the labels."""
        return self.per_label["label"].tolist()

    def weakest(self) -> pd.DataFrame:
        """Returns the table of labels that an image has, by their average precision."""
        return self.per_label[self.per_label["support"] > 0].sort_values("average_precision", kind="stable")

    def together(self) -> dict[str, np.ndarray]:
        """Returns which shares of the images that have the label of a row have, and are given, that of a
        column."""
        there = np.maximum(self.targets.sum(0), 1)[:, None]
        pairs = {"true": self.targets, "predicted": self.given}
        return {name: self.targets.T.astype(float) @ columns / there for name, columns in pairs.items()}

    def write(self, folder: Path) -> None:
        """Writes per_label.csv and cooccurrence_true.csv and cooccurrence_predicted.csv, too."""
        super().write(folder)
        self.per_label.to_csv(folder / "per_label.csv", index=False)
        for name, shares in self.together().items():
            matrix = pd.DataFrame(shares, index=self.names(), columns=self.names())
            matrix.to_csv(folder / f"cooccurrence_{name}.csv")

    def in_words(self) -> dict[str, str]:
        """Returns the weakest labels and those that were missed most often."""
        form = "{label} (average precision {average_precision:.3f})"
        weakest = [form.format_map(row) for row in self.weakest().head(3).to_dict("records")]
        missed = self.per_label[self.per_label["missed"] > 0].nlargest(3, "missed")
        often = ["{label} ({missed} of {support})".format_map(row) for row in missed.to_dict("records")]
        words = {"weakest labels": ", ".join(weakest), "most often missed": ", ".join(often)}
        return {name: text for name, text in words.items() if text}

    def draw(self, folder: Path) -> None:
        """Writes the pictures and the page. What can't be drawn is left out with a line in the log."""
        self.draw_curve(folder)
        self.mistakes = self.worst_mistakes()
        if curves := self.curves():
            with optional("precision-recall curves"):
                figures.draw_curves(curves).savefig(folder / "precision_recall.png", dpi=120)
        with optional("co-occurrence of labels"):
            titles = {"true": "… have the label (true)", "predicted": "… are given the label (predicted)"}
            panels = {titles[name]: shares for name, shares in self.together().items()}
            figure = figures.draw_cooccurrence(panels, self.names())
            figure.savefig(folder / "cooccurrence.png", dpi=120, bbox_inches="tight")
        with optional("page"):
            self.write_page(folder)

    def curves(self) -> list[figures.Curve]:
        """Returns precision and recall of the weakest labels at all thresholds."""
        found = []
        for row in self.weakest().head(SHOWN).reset_index().to_dict("records"):
            columns = self.targets[:, row["index"]], self.probabilities[:, row["index"]]
            precision, recall, _ = precision_recall_curve(*columns)
            chosen, average = (row["recall"], row["precision"]), row["average_precision"]
            found.append(figures.Curve(row["label"], recall, precision, chosen, average))
        return found

    def worst_mistakes(self) -> list[LabelMistake]:
        """Returns the images with wrong labels that have the highest loss, as far as they can be shown."""
        mistakes, names = [], self.names()
        wrong = self.predictions[(self.targets != self.given).any(1)].nlargest(MISTAKES, "loss")
        for row, (name, loss, index) in zip(
            wrong.index, wrong[["name", "loss", "index"]].itertuples(index=False, name=None), strict=True
        ):
            with optional(f"picture of {name}"):
                picture = figures.as_picture(self.images.picture(index))
                there, given, probable = self.targets[row], self.given[row], self.probabilities[row]
                order = probable.argsort(kind="stable")
                missed = [(names[i], float(probable[i])) for i in order if there[i] and not given[i]]
                extra = [(names[i], float(probable[i])) for i in order[::-1] if given[i] and not there[i]]
                mistakes.append(LabelMistake(picture, missed, extra, loss, name))
        return mistakes

    def write_page(self, folder: Path) -> None:
        """Writes index.html: all tables, and the pictures that lie in the folder."""
        metrics = self.short_metrics()
        render(
            "report/multilabel.html",
            folder / "index.html",
            report=self,
            labels=len(self.per_label),
            each=self.targets.sum(1).mean(),
            wrong=int((self.targets != self.given).any(1).sum()),
            metrics=table(pd.DataFrame({"metric": list(metrics), "value": list(metrics.values())})),
            weakest=table(self.weakest().head(SHOWN)),
            named=NAMED,
            pictures={path.stem: path for path in folder.glob("*.png")},
        )

    def log_to_wandb(self, run: "Run", folder: Path) -> None:
        """Logs the table of labels, the worst mistakes, and the pictures in `folder`."""
        import wandb

        with optional("record in W&B"):
            mistakes = wandb.Table(["picture", "missed", "wrong", "loss", "name"])
            for one in self.mistakes:
                words = [", ".join(f"{name} {p:.1%}" for name, p in labels) for labels in one[1:3]]
                mistakes.add_data(wandb.Image(one.picture), *words, one.loss, one.name)
            per_label = wandb.Table(dataframe=self.per_label.astype({"label": str}))
            content = {"test/per_label": per_label, "test/worst_mistakes": mistakes}
            files = {f"test/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
            run.log(content | files)


def average_precision(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the average precision of a label; NaN for one that no image has."""
    return float(average_precision_score(targets, probabilities)) if targets.any() else float("nan")
