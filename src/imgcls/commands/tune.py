"""imgcls train tune=lr | batch_size: Lightning's finders, and the command to run next. Nothing is trained."""

import json
import logging
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.tuner import Tuner, lr_finder

from imgcls.callbacks.distillation import Distillation
from imgcls.callbacks.finetune import Finetune
from imgcls.callbacks.progressive_resizing import ProgressiveResizing
from imgcls.config.paths import shown
from imgcls.errors import UserError

log = logging.getLogger(__name__)
lr_finder.tqdm = partial(lr_finder.tqdm, disable=None, leave=False)  # a bar on a terminal, gone at the end
KEPT = (Distillation, Finetune, ProgressiveResizing)  # they say what is learned; others write, draw or stop
SKIPPED = 10  # steps after which the smoothed loss means something


def tune(kind: str, trainer: Any, classifier: Any, data: Any, run_dir: Path) -> float:
    """Finds and returns a learning rate or the largest batch size; writes tune.json and learning_rate.png.
    Raises UserError: the losses say nothing, as there were too few steps or none got smaller."""
    run_dir.mkdir(parents=True, exist_ok=True)
    find = learning_rate if kind == "lr" else batch_size
    small = ProgressiveResizing if kind == "batch_size" else ()  # what counts are the largest images
    callbacks = [c for c in trainer.callbacks if isinstance(c, KEPT) and not isinstance(c, small)]
    for callback in callbacks:
        if isinstance(callback, Finetune):
            callback.stays = True  # Lightning's finders count what they try as epochs
    classifier.on_train_start = partial(put_back, trainer, classifier, callbacks)
    key, found = find(trainer, classifier, data, run_dir)
    del classifier.on_train_start
    (run_dir / "tune.json").write_text(json.dumps({key: found}) + "\n")
    rest = [word for word in sys.argv[1:] if word.partition("=")[0] not in ("tune", key)]
    log.info("%s=%g; train with it: imgcls train %s", key, found, shlex.join([*rest, f"{key}={found:g}"]))
    return float(found)


def put_back(trainer: Any, classifier: Any, callbacks: list[Any]) -> None:
    """Puts callbacks back where Lightning's finders, which take all others away, have begun to train."""
    if not any(isinstance(callback, ProgressiveResizing) for callback in callbacks):
        classifier.input_size = None  # its largest images, which one that is left out has set smaller
    for callback in callbacks:
        if callback not in trainer.callbacks:
            trainer.callbacks = [*trainer.callbacks, callback]
            if not isinstance(callback, Finetune):  # its features are of a training with other loaders
                callback.on_fit_start(trainer, classifier)


def learning_rate(trainer: Any, classifier: Any, data: Any, run_dir: Path) -> tuple[str, float]:
    """Returns the rate at which the loss falls fastest, while log(rate) rises from 1e-6 to 1 (Smith 2015)."""
    if classifier.hparams["optimizer"].get("lr_per_256"):
        raise UserError(
            "tune=lr finds optimizer.lr, in whose place optimizer.lr_per_256 is given; leave it out"
        )
    steps = max(100, min(data.batches_per_epoch(trainer.world_size), 300))
    given = {"min_lr": 1e-6, "max_lr": 1.0, "num_training": steps, "update_attr": False}
    finder = Tuner(trainer).lr_find(classifier, datamodule=data, **given)
    # Lightning's own suggestion is the slope over the rate itself, which is steepest at the lowest rates.
    rates, losses = (np.array([] if finder is None else finder.results[key]) for key in ("lr", "loss"))
    used = np.flatnonzero(np.isfinite(losses))[SKIPPED:-1]
    slopes = np.gradient(losses[used], np.log(rates[used])) if len(used) > 1 else np.zeros(1)
    if finder is None or not slopes.min() < 0:
        advice = "look at the data, or take another optimizer"
        raise UserError(f"tune=lr: the loss fell at no learning rate from 1e-6 to 1; {advice}")
    best = used[slopes.argmin()]
    suggestion = rates[best]
    figure: Any = finder.plot(suggest=False)
    axes = figure.axes[0]
    axes.plot(suggestion, losses[best], "o", color="red", markersize=8)
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", title=f"suggested: {suggestion:.2g}")
    figure.savefig(run_dir / "learning_rate.png", dpi=120, bbox_inches="tight")
    log.info("plot: %s", shown(run_dir / "learning_rate.png"))
    return "optimizer.lr", float(f"{suggestion:.2g}")


def batch_size(trainer: Any, classifier: Any, data: Any, run_dir: Path) -> tuple[str, int]:
    """Returns the largest batch that a step has memory for, by doubling; at most the training set."""
    before, most = data.batch_size, len(data.sets["train"]) // trainer.world_size
    given = {"mode": "power", "steps_per_trial": 3, "init_val": min(16, most), "max_val": most}
    found = Tuner(trainer).scale_batch_size(classifier, datamodule=data, **given)
    data.batch_size = before
    assert found is not None
    return "data.batch_size", min(found, most)
