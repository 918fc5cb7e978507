"""LastCheckpoint callback: writes last.ckpt after each epoch, every N minutes and on signals."""

import logging
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.lr_scheduler import LambdaLR

from imgcls.data.batch import Batch
from imgcls.engine.checkpoint import SaveConfig, State
from imgcls.engine.private import count_by_epochs, restore_metric, set_last_rates, skip_sigterm_broadcast
from imgcls.engine.recovery import FiniteCheck
from imgcls.engine.signals import SIGNALS
from imgcls.errors import UserError
from imgcls.loggers.unharmed import EpochCSV
from imgcls.processes import Agreement, gathered, world_size
from imgcls.runs.checkpoints import STATES, not_finite
from imgcls.tasks.metrics import on
from imgcls.tasks.network import data_of
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
EVERY = 8  # steps after which ranks ask each other whether to save or to stop


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, from which a run goes on as if it had never stopped: after each epoch, once all is
    logged; every `every_minutes` within epochs; and when a signal asks to stop. What it replaces becomes
    `previous.ckpt`. Before a save it checks that losses, weights and buffers are finite."""

    monitor, best_model_path = None, ""  # as a ModelCheckpoint has, for a run without one

    def __init__(self, dirpath: str, every_minutes: float = 10.0) -> None:
        self.path, self.every_minutes, self.saved = Path(dirpath) / "last.ckpt", every_minutes, 0.0
        self.saving = self.epoch_ended = False
        self.infinite: list[str] = []  # buffers that are not finite from the start, such as a mask
        self.metrics: State = {}  # that were logged last before the checkpoint
        self.within: State = {}  # of a checkpoint that was written within an epoch

    # When it saves and stops
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        bad = self.finite.look(outputs["loss"], trainer.current_epoch, batch_idx, batch.indices)
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if between_steps or (world_size() > 1 and trainer.global_step % EVERY):
            return
        late = time.monotonic() - self.saved > 60 * self.every_minutes
        save, stop, bad = self.agreement.any(late, SIGNALS.asked is not None, bad)
        epoch_goes_on = batch_idx + 1 < trainer.num_training_batches  # else it is saved at its end
        if bad or (epoch_goes_on and (save or stop)):
            self.save(trainer)
            if stop:
                SIGNALS.stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_ended = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.epoch_ended:  # only now is the previous epoch logged and the schedule stepped
            self.save(trainer)
            self.stop_if_asked()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        SIGNALS.training = False
        if self.epoch_ended:
            self.save(trainer)
        self.stop_if_asked()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        SIGNALS.training = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if SIGNALS.training:  # what is measured shall be of a good network
            self.finite.check(trainer, self.agreement, pl_module.state_dict())

    def stop_if_asked(self) -> None:
        """Ends the process, if a signal has asked any of the processes to stop."""
        if self.agreement.any(SIGNALS.asked is not None)[0]:
            SIGNALS.stop()

    def save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`, if all is finite. Raises NonFiniteLoss."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.saving = True
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self.saving = False
        self.epoch_ended, self.saved = False, time.monotonic()

    # What it adds to a checkpoint, and brings back
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        self.finite.check(trainer, self.agreement, *[checkpoint[key] for key in STATES if key in checkpoint])
        checkpoint["infinite"] = self.infinite
        checkpoint["metrics"] = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
        if not self.saving:  # it is another callback's
            return
        for own in (c for c in trainer.callbacks if isinstance(c, SaveConfig)):  # type: ignore[attr-defined]
            own.keep(trainer)
        if self.epoch_ended:  # the next has begun: unchanged counters would mark it as done
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts |= dict.fromkeys(counts, counts["processed"])
        else:
            assert isinstance(pl_module, Task)
            metrics = gathered(pl_module.train_metrics.state())
            size = data_of(trainer).batch_size  # what an epoch needs to go on beside Lightning's own state:
            within = {"first_rate": pl_module.first_rate, "metrics": metrics, "batch_size": size}
            checkpoint["within_epoch"] = within

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        self.metrics, self.within = checkpoint.get("metrics", {}), checkpoint.get("within_epoch", {})
        if trainer.state.fn == TrainerFn.FITTING:
            change_rate(checkpoint, pl_module.hparams["optimizer"].get("lr"))
            change_batch_size(checkpoint, data_of(trainer).batch_size)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # before a checkpoint is loaded
            self.infinite = not_finite(dict(pl_module.named_buffers()))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        skip_sigterm_broadcast(trainer)
        count_by_epochs(trainer)
        self.agreement = Agreement()
        remembered, folder = 2 * EVERY * trainer.accumulate_grad_batches, self.path.parent
        self.finite = FiniteCheck(pl_module.device, data_of(trainer), folder, self.infinite, remembered)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        SIGNALS.install()  # once more: Lightning put its own in front
        SIGNALS.training, self.saved = True, time.monotonic()
        for logger in (logger for logger in trainer.loggers if isinstance(logger, EpochCSV)):
            logger.keep(trainer.current_epoch)
        trainer.callback_metrics.update(self.metrics)
        if self.metrics:  # it is a resume
            follow_schedules(trainer)
        if trainer.fit_loop.restarted_mid_epoch:
            assert isinstance(pl_module, Task)
            go_on_within_epoch(trainer, pl_module, self.within)


def follow_schedules(trainer: Trainer) -> None:
    """Takes the schedules' rates for this step: a resume may have moved the end of the training."""
    for schedule in (c.scheduler for c in trainer.lr_scheduler_configs if isinstance(c.scheduler, LambdaLR)):
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        now = [float(base * rate(schedule.last_epoch)) for base, rate in pairs]
        before = [float(rate) for rate in schedule.get_last_lr()]
        if not all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(now, before, strict=True)):
            set_last_rates(schedule, now)
            if trainer.is_global_zero:
                said = "the schedule has another end than before: learning rate %g, was %g"
                log.info(said, now[0], before[0])


def change_rate(checkpoint: State, rate: float | None) -> None:
    """Makes a checkpoint go on with `optimizer.lr=rate`: scales all rates of its optimizers and schedules."""
    before = checkpoint["hyper_parameters"]["optimizer"].get("lr")
    if rate == before:
        return
    if rate is None or not before:
        advice = "and can't be scaled; start a new run"
        raise UserError(f"optimizer.lr={rate}: the run's rates are {before}, {advice}")
    factor = rate / before
    groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    for entry in [*groups, *checkpoint["lr_schedulers"]]:
        for key in {"lr", "initial_lr", "max_lr", "min_lr"} & entry.keys():
            entry[key] *= factor
        for key in {"base_lrs", "_last_lr"} & entry.keys():
            entry[key] = [factor * value for value in entry[key]]


def change_batch_size(checkpoint: State, size: int) -> None:
    """Counts the batches of an epoch that has begun in batches of another size."""
    before = checkpoint.get("within_epoch", {}).get("batch_size", size)
    if before == size:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        samples = counts["processed"] * before
        if samples % size:
            raise UserError(f"data.batch_size={size}: within an epoch it can only become a share of {before}")
        counts |= dict.fromkeys(counts, samples // size) | {"completed": samples // size - 1}


def go_on_within_epoch(trainer: Trainer, task: Task, within: dict[str, Any]) -> None:
    """Brings the state `within` an epoch back, of all processes, and does what Lightning leaves out then."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # what they set here is in no checkpoint
        callback.on_train_epoch_start(trainer, task)
    trainer.fit_loop.restarting = False  # or a plateau's schedule would miss this epoch's end
    trainer.fit_loop.epoch_loop.restarting = True
    task.first_rate = within["first_rate"]
    states = within["metrics"][trainer.global_rank]
    for name, metric in task.train_metrics.named():
        restore_metric(metric, {key: on(value, task.device) for key, value in states[name].items()})
