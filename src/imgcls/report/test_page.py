"""The test report as a page."""

from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.report.page import inline, table
from imgcls.report.test_report import Report


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
        worst += (
            " Beside each: where the evidence for the predicted class lies (Grad-CAM), brighter where there is more."
        )
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
