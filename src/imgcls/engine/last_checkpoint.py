"""LastCheckpoint callback: writes last.ckpt after each epoch, every N minutes and on signals."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from imgcls.data.batch import Batch
from imgcls.data.module import ImageDataModule
from imgcls.engine.lightning_state import (
    change_batch_size,
    change_rate,
    follow_schedules,
    go_on_within_epoch,
    start_of_epoch,
    state_within_epoch,
)
from imgcls.engine.nonfinite import FiniteCheck
from imgcls.engine.private import count_by_epochs, skip_sigterm_broadcast
from imgcls.engine.save_config import SaveConfig
from imgcls.engine.signals import SIGNALS
from imgcls.errors import UserError
from imgcls.loggers.epoch_csv import EpochCSV
from imgcls.processes import Agreement, world_size
from imgcls.runs.checkpoints import STATES, not_finite
from imgcls.tasks.classification import ImageClassifier

EVERY = 8  # steps after which ranks ask each other whether to save or to stop


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, from which a run goes on as if it had never stopped: after each epoch, once
    all is logged; every `every_minutes` within epochs; and when a signal asks to stop. What it replaces
    becomes `previous.ckpt`. Before a save it checks that losses, weights and buffers are finite.
    """

    monitor, best_model_path = None, ""  # as a ModelCheckpoint has, for a run without one

    def __init__(self, dirpath: str, every_minutes: float = 10.0) -> None:
        if not every_minutes > 0:
            raise UserError(f"Safeguard: every_minutes={every_minutes}: expected a number above 0")
        self.path, self.every_minutes, self.saved = Path(dirpath) / "last.ckpt", every_minutes, 0.0
        self.saving = self.epoch_ended = False
        self.infinite: list[str] = []  # buffers that are so from the beginning, such as a mask
        self.metrics: dict[str, Any] = {}  # that were logged last before the checkpoint
        self.within: dict[str, Any] = {}  # what a checkpoint brought that was written within an epoch

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
        if self.epoch_ended:  # only now is the epoch before logged, and the learning rate on its way
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

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = [checkpoint[key] for key in STATES if key in checkpoint]
        self.finite.check(trainer, self.agreement, *states)
        checkpoint["infinite"] = self.infinite
        checkpoint["metrics"] = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
        if not self.saving:  # it is another callback's
            return
        for saver in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(saver, SaveConfig):
                saver.keep(trainer)
        if self.epoch_ended:
            start_of_epoch(checkpoint["loops"]["fit_loop"])
        else:
            assert isinstance(pl_module, ImageClassifier)
            checkpoint["within_epoch"] = state_within_epoch(pl_module, data_of(trainer).batch_size)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
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
        for logger in trainer.loggers:
            if isinstance(logger, EpochCSV):
                logger.keep(trainer.current_epoch)
        trainer.callback_metrics.update(self.metrics)
        if self.metrics:  # it is a resume
            follow_schedules(trainer)
        if trainer.fit_loop.restarted_mid_epoch:
            assert isinstance(pl_module, ImageClassifier)
            go_on_within_epoch(trainer, pl_module, self.within)


def data_of(trainer: Trainer) -> ImageDataModule:
    """Returns the datamodule that a trainer trains on."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data
