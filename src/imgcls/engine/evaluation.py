"""Test of a checkpoint: fits its temperature, measures, and writes the report."""

import logging
import math
from pathlib import Path

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from imgcls.engine.checkpoint import add_to_checkpoint
from imgcls.engine.recovery import Training
from imgcls.report.test_report import Report, draw_report, make_report, write_report

log = logging.getLogger(__name__)
SCALED = ("top1", "top5", "loss", "precision", "recall", "f1", "calibration_error")
ORDER = (*SCALED, "loss_unscaled", "calibration_error_unscaled")


def run_test(training: Training, folder: Path, path: str | None = None) -> Report | None:
    """Tests the checkpoint at `path` (none: the weights in memory); rank 0 writes and returns the report."""
    trainer, classifier, data = training
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


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Returns the temperature, in four digits, that `logits (N, K)` have the lowest cross-entropy with (Guo
    et al. 2017, arXiv:1706.04599); 1 where there is none: with every target right the best would be 0."""
    logits = logits.double()
    if bool((logits.argmax(1) == targets).all()) or not bool(logits.isfinite().all()):
        return 1.0

    def loss(log_temperature: float) -> float:  # it has one minimum: the loss is convex in 1 / temperature
        return float(F.cross_entropy(logits * math.exp(-log_temperature), targets))

    found = minimize_scalar(loss, bounds=(math.log(0.01), math.log(100.0)), method="bounded")
    return float(f"{math.exp(found.x):.4g}")


def calibrate(training: Training, path: str | None) -> None:
    """Fits the temperature of a checkpoint (none: of the weights in memory) on the validation split, and
    writes it into the file: confidences become as high as accuracy."""
    trainer, classifier, data = training
    loggers, trainer.loggers = trainer.loggers, []
    classifier.predictions.keep_logits = True
    try:  # as the test will see them: the same precision, the same weights with EMA
        trainer.test(classifier, data.val_dataloader(), ckpt_path=path, verbose=False, weights_only=True)
    finally:
        trainer.loggers, classifier.predictions.keep_logits = loggers, False
    logits, targets = classifier.tested["logits"], classifier.tested["targets"]
    classifier.temperature = fit_temperature(logits, targets)  # all processes have all logits
    if trainer.is_global_zero:
        if path is not None:
            add_to_checkpoint(Path(path), temperature=classifier.temperature)
        if classifier.temperature == 1:
            reason = "validation has no mistakes to fit it on, or numbers that are not finite"
            log.warning("temperature: left at 1, as %s", reason)
        else:
            log.info("temperature: %g, fitted on %d validation images", classifier.temperature, len(targets))
    trainer.strategy.barrier()  # the others test from that file
