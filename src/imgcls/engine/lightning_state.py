"""Changes to the state that Lightning keeps of a training: its counters, learning rates and schedules."""

import logging
import math
from typing import Any

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR

from imgcls.engine.private import set_last_rates
from imgcls.errors import UserError

log = logging.getLogger(__name__)


def follow_schedules(trainer: Trainer) -> None:
    """Takes the rates that the schedules have for this step: the end of the training may have been moved."""
    for schedule in (config.scheduler for config in trainer.lr_scheduler_configs):
        if not isinstance(schedule, LambdaLR):
            continue
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        now = [float(base * rate(schedule.last_epoch)) for base, rate in pairs]
        before = [float(rate) for rate in schedule.get_last_lr()]
        if not all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(now, before, strict=True)):
            set_last_rates(schedule, now)
            if trainer.is_global_zero:
                log.info(
                    "the schedule has another end than before: learning rate %g, was %g", now[0], before[0]
                )


def scale_rates(checkpoint: dict[str, Any], factor: float) -> None:
    """Scales all learning rates that a checkpoint's optimizers and schedules go on with."""
    groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    for entry in [*groups, *checkpoint["lr_schedulers"]]:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in entry:
                entry[key] *= factor
        for key in ("base_lrs", "_last_lr"):
            if key in entry:
                entry[key] = [factor * rate for rate in entry[key]]


def count_batches(progress: dict[str, Any], before: int, now: int) -> None:
    """Counts the batches of an epoch that has begun anew, for another batch size."""
    for counts in (progress["total"], progress["current"]):
        samples = counts["processed"] * before
        if samples % now:
            raise UserError(f"data.batch_size={now}: within an epoch it can only become a share of {before}")
        counts |= dict.fromkeys(counts, samples // now) | {"completed": samples // now - 1}


def start_of_epoch(loops: dict[str, Any]) -> None:
    """Makes the state of Lightning's loops at an epoch's end that of the next one's start, where all agrees again."""
    epochs = loops["epoch_progress"]
    for counts in (epochs["total"], epochs["current"]):
        counts |= dict.fromkeys(counts, counts["processed"])
    for name, progress in loops.items():
        if name.startswith("epoch_loop.") and not name.endswith("state_dict"):
            _restart(progress)


def _restart(progress: dict[str, Any]) -> None:
    for key, value in progress.items():
        if key == "current":
            progress[key] = dict.fromkeys(value, 0)
        elif key == "is_last_batch":
            progress[key] = False
        elif isinstance(value, dict):
            _restart(value)
