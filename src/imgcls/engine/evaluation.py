"""Test of a checkpoint: fits what the task fits on validation, measures, and writes the report."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.engine.checkpoint import add_to_checkpoint
from imgcls.engine.recovery import Training

if TYPE_CHECKING:
    from imgcls.report.origin import Origin
    from imgcls.report.report import Report

log = logging.getLogger(__name__)


def run_test(
    training: Training,
    folder: Path,
    path: str | None = None,
    how: Mapping[str, Any] | None = None,
    origin: "Callable[[], Origin] | None" = None,
) -> "Report | None":
    """Tests the checkpoint at `path` (none: the weights in memory); rank 0 writes and returns the report,
    which says `how` it was tested, by name, where that is another way than in training, and what is known of
    the `origin` of the network."""
    from imgcls.report.report import optional

    trainer, task, data = training
    metrics = trainer.test(task, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)[0]
    if not trainer.is_global_zero:
        return None
    found = {name: float(value) for name, value in metrics.items() if name.startswith("test/")}
    report = task.report(found, data.sets["test"])
    report.how = dict(how or {})
    if origin is not None:
        with optional("word on the training"):
            report.origin = origin()
    report.write(folder)
    report.draw(folder)
    return report


def fit_on_validation(training: Training, path: str | None) -> None:
    """Lets the task fit numbers, such as a temperature, on a checkpoint's outputs (none: of the weights in
    memory) for the validation split, and writes them into the file."""
    trainer, task, data = training
    loggers, trainer.loggers = trainer.loggers, []
    task.keep_logits = True
    try:  # as the test will see them: the same precision, the same weights with EMA
        trainer.test(task, data.val_dataloader(), ckpt_path=path, verbose=False, weights_only=True)
    finally:
        trainer.loggers, task.keep_logits = loggers, False
    found = task.fitted(task.tested)  # all processes have all that was kept
    if trainer.is_global_zero and path is not None:
        add_to_checkpoint(Path(path), **found)
    trainer.strategy.barrier()  # the others test from that file
