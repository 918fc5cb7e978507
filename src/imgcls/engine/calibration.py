"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599): makes confidences as high as accuracy."""

import logging
import math
from pathlib import Path

from lightning.pytorch import Trainer
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from imgcls.data.module import ImageDataModule
from imgcls.engine.checkpoint import add_to_checkpoint
from imgcls.tasks.classification import ImageClassifier

log = logging.getLogger(__name__)
WITHIN = (0.01, 100.0)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Returns the temperature, in four digits, that `logits (N, K)` have the lowest cross-entropy with.

    Returns 1 where there is no such temperature: with every target right the best would be 0.
    """
    logits = logits.double()
    if bool((logits.argmax(1) == targets).all()) or not bool(logits.isfinite().all()):
        return 1.0

    def loss(log_temperature: float) -> float:  # it has one minimum: the loss is convex in 1 / temperature
        return float(F.cross_entropy(logits * math.exp(-log_temperature), targets))

    found = minimize_scalar(loss, bounds=(math.log(WITHIN[0]), math.log(WITHIN[1])), method="bounded")
    return float(f"{math.exp(found.x):.4g}")


def calibrate(trainer: Trainer, classifier: ImageClassifier, data: ImageDataModule, path: str | None) -> None:
    """Fits the temperature of a checkpoint on the validation split, and writes it into the file.

    Args:
        path: the checkpoint; none: the weights in memory.
    """
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
