"""Test report as figures and a page: writes index.html and the PNG files beside it."""

from pathlib import Path

import pandas as pd

from imgcls.data.batch import ImageDataset
from imgcls.report.figures import draw_confusion, draw_mistakes, draw_reliability, reliability
from imgcls.report.mistakes import worst_mistakes
from imgcls.report.page import render, table
from imgcls.report.test_report import Report, optional
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier


def draw_report(
    report: Report, folder: Path, spec: DataSpec, classifier: ImageClassifier, dataset: ImageDataset
) -> None:
    """Writes the pictures and the page. What can't be drawn is left out with a line in the log."""
    report.mistakes = worst_mistakes(report, classifier, dataset)
    with optional("confusion matrix"):
        figure = draw_confusion(report.confusion, list(spec.class_names))
        figure.savefig(folder / "confusion_matrix.png", dpi=120, bbox_inches="tight")
    with optional("reliability diagram"):
        right, old = report.right(), report.metrics.get("test/calibration_error_unscaled")
        bins = reliability(report.predictions["confidence"].to_numpy(), right)
        before = None if report.unscaled is None else reliability(report.unscaled, right)
        title = f"Calibration error {report.metrics['test/calibration_error']:.4f}"
        title += "" if old is None else f" ({old:.4f} before scaling)"
        draw_reliability(bins, before, title).savefig(folder / "reliability.png", dpi=120)
    if report.mistakes:
        with optional("sheet of mistakes"):
            draw_mistakes(report.mistakes).savefig(folder / "mistakes.png", dpi=120)
    with optional("page"):
        write_page(report, folder)


def write_page(report: Report, folder: Path) -> None:
    """Writes index.html: all tables, and the pictures that lie in the folder."""
    pairs = report.pairs.head(20).assign(share=report.pairs["share"].map("{:.1%}".format))
    weakest = report.per_class.sort_values("f1", kind="stable").head(100)
    render(
        "report/test_report.html",
        folder / "index.html",
        report=report,
        classes=len(report.per_class),
        wrong=int((~report.right()).sum()),
        metrics=table(metrics_table(report)),
        pairs=table(pairs, words=2),
        weakest=table(weakest),
        pictures={path.stem: path for path in folder.glob("*.png")},
    )


def metrics_table(report: Report) -> pd.DataFrame:
    """Returns the metrics, a row each, beside them those before temperature scaling where there are any."""
    named = report.short_metrics()
    metrics = pd.DataFrame({"metric": [name for name in named if not name.endswith("_unscaled")]})
    metrics["value"] = metrics["metric"].map(named)
    if any(name.endswith("_unscaled") for name in named):
        metrics["before scaling"] = (metrics["metric"] + "_unscaled").map(named)
    return metrics
