"""The test report as a page."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from imgcls.data.batch import ImageDataset
from imgcls.report.figures import (
    Mistake,
    as_picture,
    draw_confusion,
    draw_mistakes,
    draw_reliability,
    reliability,
    under_heat,
)
from imgcls.report.heatmaps import grad_cam
from imgcls.report.page import inline, optional, table, write_page
from imgcls.report.test_report import Report
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier


def sections(report: Report, folder: Path) -> list[dict[str, Any]]:
    """Returns what `write_page` takes: all tables, and the pictures that lie in the folder."""
    classes, mistakes = len(report.per_class), report.mistakes
    named = {name.removeprefix("test/"): value for name, value in report.metrics.items()}
    metrics = pd.DataFrame({"metric": [name for name in named if not name.endswith("_unscaled")]})
    metrics["value"] = metrics["metric"].map(named)
    if any(name.endswith("_unscaled") for name in named):
        metrics["before scaling"] = (metrics["metric"] + "_unscaled").map(named)
    drawn = {path.stem: [inline(path)] for path in folder.glob("*.png")}
    pairs = report.pairs.head(20).assign(share=report.pairs["share"].map("{:.1%}".format))
    worst = "The wrong predictions with the highest confidence."
    if any(mistake.evidence is not None for mistake in mistakes):
        worst += " Beside each: where the evidence for the predicted class lies (Grad-CAM), brighter where there is more."
    gallery = []
    for mistake in mistakes:
        pictures = [inline(image) for image in (mistake.picture, mistake.evidence) if image is not None]
        words = {"true:": mistake.target, "predicted:": f"{mistake.prediction}, {mistake.confidence:.1%}"}
        gallery.append((pictures, words | {mistake.name: ""}))
    large = "confusion_matrix.png" if classes > 20 else None  # wider than the text
    weakest = report.per_class.sort_values("f1", kind="stable").head(100)
    part = f", {len(weakest)} of {classes:,}" if classes > 100 else ""
    wrong = int((~report.right()).sum())
    return [
        {"text": f"{len(report.predictions):,} images, {classes} classes, {wrong:,} mistakes"},
        {"title": "Metrics", "table": table(metrics)},
        {"title": "Confusion matrix", "pictures": drawn.get("confusion_matrix"), "file": large},
        {"title": "Most confused pairs", "table": table(pairs, words=2)} if len(pairs) else {},
        {"title": "Reliability", "pictures": drawn.get("reliability")},
        {"title": "Worst mistakes", "text": worst, "gallery": gallery} if mistakes else {},
        {"title": f"Classes, weakest first{part}", "table": table(weakest)},
    ]


def draw_report(
    report: Report, folder: Path, spec: DataSpec, classifier: ImageClassifier, dataset: ImageDataset
) -> None:
    """Writes the pictures, confusion_matrix.png, reliability.png and mistakes.png, and the page, index.html.

    What can't be drawn is left out with a line in the log.
    """
    report.mistakes = worst_mistakes(report, classifier, dataset)
    right, now, before = report.right(), report.predictions["confidence"].to_numpy(), report.unscaled
    with optional("confusion matrix"):
        draw_confusion(report.confusion, list(spec.class_names)).savefig(
            folder / "confusion_matrix.png", dpi=120, bbox_inches="tight"
        )
    with optional("reliability diagram"):
        error, old = (report.metrics.get(f"test/calibration_error{end}") for end in ("", "_unscaled"))
        title = f"Calibration error {error:.4f}" + (f" ({old:.4f} before scaling)" if old is not None else "")
        figure = draw_reliability(
            reliability(now, right), None if before is None else reliability(before, right), title
        )
        figure.savefig(folder / "reliability.png", dpi=120)
    if report.mistakes:
        with optional("sheet of mistakes"):
            draw_mistakes(report.mistakes).savefig(folder / "mistakes.png", dpi=120)
    with optional("page"):
        write_page(folder / "index.html", "Test report", sections(report, folder))


def worst_mistakes(report: Report, classifier: ImageClassifier, dataset: ImageDataset) -> list[Mistake]:
    """Returns the wrong predictions with the highest confidence, as far as they can be shown."""
    mistakes, images, classes = [], [], []
    for row in report.predictions[~report.right()].nlargest(MISTAKES, "confidence").to_dict("records"):
        with optional(f"picture of {row['name']}"):
            image = dataset.picture(row["index"])
            mistakes.append(
                Mistake(
                    as_picture(image), None, row["target"], row["prediction"], row["confidence"], row["name"]
                )
            )
            images.append(image)
            classes.append(classifier.spec.class_names.index(row["prediction"]))
    if mistakes:
        with optional("Grad-CAM"), torch.inference_mode(False):
            device = classifier.device
            batch = classifier.normalise(torch.stack(images).to(device))
            heats = grad_cam(classifier.network, batch, torch.tensor(classes, device=device)).cpu()
            for mistake, heat in zip(mistakes, heats, strict=True):
                mistake.evidence = under_heat(mistake.picture, heat)
    return mistakes


MISTAKES = 16  # the worst ones are shown with their pictures
