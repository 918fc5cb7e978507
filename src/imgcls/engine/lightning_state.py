"""Lightning's state of a training: changes to its counters, learning rates, schedules and metrics."""

import logging
import math
from typing import Any

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR

from imgcls.engine.private import restore_metric, set_last_rates
from imgcls.errors import UserError
from imgcls.processes import gathered
from imgcls.tasks.classification import ImageClassifier

log = logging.getLogger(__name__)
EPOCH_METRICS = ("train_loss", "train_top1")


def follow_schedules(trainer: Trainer) -> None:
    """Takes the schedules' rates for this step: a resume may have moved the end of the training."""
    for schedule in (config.scheduler for config in trainer.lr_scheduler_configs):
        if not isinstance(schedule, LambdaLR):
            continue
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        now = [float(base * rate(schedule.last_epoch)) for base, rate in pairs]
        before = [float(rate) for rate in schedule.get_last_lr()]
        if not all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(now, before, strict=True)):
            set_last_rates(schedule, now)
            if trainer.is_global_zero:
                said = "the schedule has another end than before: learning rate %g, was %g"
                log.info(said, now[0], before[0])


def change_rate(checkpoint: dict[str, Any], rate: float | None) -> None:
    """Makes a checkpoint go on with `optimizer.lr=rate`: scales all rates of its optimizers and schedules.

    Raises:
        UserError: the run has no such rate.
    """
    before = checkpoint["hyper_parameters"]["optimizer"].get("lr")
    if rate == before:
        return
    if rate is None or not before:
        raise UserError(
            f"optimizer.lr={rate}: the run's rates are {before}, and can't be scaled; start a new run"
        )
    factor = rate / before
    groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    for entry in [*groups, *checkpoint["lr_schedulers"]]:
        for key in {"lr", "initial_lr", "max_lr", "min_lr"} & entry.keys():
            entry[key] *= factor
        for key in {"base_lrs", "_last_lr"} & entry.keys():
            entry[key] = [factor * value for value in entry[key]]


def change_batch_size(checkpoint: dict[str, Any], size: int) -> None:
    """Counts the batches of an epoch that has begun in batches of another size.

    Raises:
        UserError: no whole number of them was seen.
    """
    before = checkpoint.get("within_epoch", {}).get("batch_size", size)
    if before == size:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        samples = counts["processed"] * before
        if samples % size:
            raise UserError(f"data.batch_size={size}: within an epoch it can only become a share of {before}")
        counts |= dict.fromkeys(counts, samples // size) | {"completed": samples // size - 1}


def state_within_epoch(classifier: ImageClassifier, batch_size: int) -> dict[str, Any]:
    """Returns what an epoch that has begun needs to go on beside Lightning's own state, of all processes."""
    states = {name: getattr(classifier, name).metric_state for name in EPOCH_METRICS}
    states = {name: {key: value.cpu() for key, value in state.items()} for name, state in states.items()}
    return {"first_rate": classifier.first_rate, "metrics": gathered(states), "batch_size": batch_size}


def go_on_within_epoch(trainer: Trainer, classifier: ImageClassifier, within: dict[str, Any]) -> None:
    """Brings all that `state_within_epoch` returned back, and does what Lightning leaves out then."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # what they set here is in no checkpoint
        callback.on_train_epoch_start(trainer, classifier)
    trainer.fit_loop.restarting = False  # or a plateau's schedule would miss this epoch's end
    trainer.fit_loop.epoch_loop.restarting = True
    classifier.first_rate = within["first_rate"]
    for name, states in within["metrics"][trainer.global_rank].items():
        states = {key: value.to(classifier.device) for key, value in states.items()}
        restore_metric(getattr(classifier, name), states)


def start_of_epoch(loops: dict[str, Any]) -> None:
    """Counts the next epoch, in whose first hook the state of Lightning's loops was taken, as not begun.
    Lightning would take all its batches for done.
    """
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts |= dict.fromkeys(counts, counts["processed"])
