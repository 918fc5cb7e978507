"""Test report in pictures: the worst mistakes, index.html and the PNG files beside it, and tables in W&B."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from imgcls.data.batch import ImageDataset
from imgcls.report import figures
from imgcls.report.figures import Mistake, reliability
from imgcls.report.heatmaps import grad_cam
from imgcls.report.page import render, table
from imgcls.report.test_report import Report, optional
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier

if TYPE_CHECKING:
    from wandb import Run

MISTAKES = 16  # are shown with their pictures
PICTURES = {"confusion_picture": "confusion_matrix", "reliability": "reliability", "mistakes": "mistakes"}


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
    render(
        "report/test_report.html",
        folder / "index.html",
        report=report,
        classes=len(report.per_class),
        wrong=int((~report.right()).sum()),
        metrics=table(metrics),
        pairs=table(pairs, words=2),
        weakest=table(report.per_class.sort_values("f1", kind="stable").head(100)),
        pictures={path.stem: path for path in folder.glob("*.png")},
    )


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
