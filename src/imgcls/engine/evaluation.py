"""Test of a checkpoint, with its report."""

from pathlib import Path

from lightning.pytorch import Trainer

from imgcls.data.module import ImageDataModule
from imgcls.report.report_page import draw_report
from imgcls.report.test_report import Report, make_report, write_report
from imgcls.tasks.classification import ImageClassifier

ORDER = (
    "top1", "top5", "loss", "precision", "recall", "f1", "calibration_error",
    "loss_unscaled", "calibration_error_unscaled",
)  # fmt: skip


def run_test(
    trainer: Trainer,
    classifier: ImageClassifier,
    data: ImageDataModule,
    folder: Path,
    path: str | None = None,
) -> Report | None:
    """Tests the checkpoint at `path` (none: the weights in memory); rank 0 writes and returns the report."""
    metrics = trainer.test(classifier, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)[0]
    if not trainer.is_global_zero:
        return None
    found = {name: metrics[name] for name in (f"test/{short}" for short in ORDER) if name in metrics}
    if classifier.temperature != 1:
        found["test/temperature"] = classifier.temperature
    report = make_report(found, classifier.tested, data.sets["test"], data.spec)
    write_report(report, folder, data.spec)
    draw_report(report, folder, data.spec, classifier, data.sets["test"])
    return report
