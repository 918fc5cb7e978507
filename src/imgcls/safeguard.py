"""What a run leaves behind while it trains, so that nothing that was learned is lost."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed

from imgcls.classifier import ImageClassifier
from imgcls.data.sampler import world_size
from imgcls.errors import UserError
from imgcls.loggers import EpochCSV
from imgcls.run import shown
from imgcls.stopping import SIGNALS

EVERY = 8  # steps after which ranks ask each other whether to save or to stop


class NonFiniteLoss(UserError):
    """The loss became infinite or NaN, in the batch `(epoch, batch index)`."""

    batch: tuple[int, int]


class Safeguard(Checkpoint):
    """Writes `last.ckpt`, from which a run goes on as if it had never stopped: after each epoch, when all of it is
    logged; every `every_minutes` within epochs; and when a signal asks to stop. `previous.ckpt` is the one before.

    A loss that is not finite is noticed on the device. The host learns of it without waiting, and before anything is
    saved, so `last.ckpt` is always good.
    """

    monitor, best_model_path = None, ""  # as of a ModelCheckpoint, for a run without one

    def __init__(self, dirpath: str, every_minutes: float = 10.0) -> None:
        if not every_minutes > 0:
            raise UserError(f"Safeguard: every_minutes={every_minutes}: expected a number above 0")
        self.path, self.every_minutes, self.saved = Path(dirpath) / "last.ckpt", every_minutes, 0.0
        self.saving = self.epoch_ended = False
        self.metrics: dict[str, Any] = {}  # that were logged last before the checkpoint
        self.within: dict[str, Any] = {}  # what a checkpoint brought that was written within an epoch

    def on_fit_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        # Lightning's agreement on SIGTERM waits for the device in each step; ours is in `agreed`.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        # With max_steps it would take the end of an epoch for the middle of one.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        other = world_size() > 1 and distributed.get_backend() != "gloo"
        self.group: Any = distributed.new_group(backend="gloo") if other else None
        self.bad = torch.full((), -1, device=pl_module.device)  # the first batch with a loss that is not finite
        self.seen = torch.full((), -1, pin_memory=self.bad.is_cuda)  # what the host knows of it
        self.recent: deque[tuple[int, Tensor]] = deque(maxlen=2 * EVERY * trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        SIGNALS.install()  # once more: Lightning put its own in front
        SIGNALS.training, self.saved = True, time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, EpochCSV):
                logger.keep(trainer.current_epoch)
        trainer.callback_metrics.update(self.metrics)
        if trainer.fit_loop.restarted_mid_epoch:  # Lightning leaves these out, and what they set is in no checkpoint
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_train_epoch_start(trainer, pl_module)
            trainer.fit_loop._restarting = False  # or a plateau's schedule would miss this epoch's end
            pl_module.first_rate = self.within["first_rate"]
            for name, state in self.within["metrics"][trainer.global_rank].items():
                metric = getattr(pl_module, name)
                metric._update_count = 1
                for key, value in state.items():
                    setattr(metric, key, value.to(pl_module.device))

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ImageClassifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.recent.append((batch_idx, batch.indices))
        self.bad = torch.where(outputs["loss"].detach().isfinite() | (self.bad >= 0), self.bad, batch_idx)
        bad = bool(self.seen.numpy() >= 0)
        self.seen.copy_(self.bad, non_blocking=True)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (world_size() > 1 and trainer.global_step % EVERY):
            return
        late = time.monotonic() - self.saved > 60 * self.every_minutes
        save, stop, bad = self.agreed(late, SIGNALS.asked is not None, bad)
        if bad or ((save or stop) and batch_idx + 1 < trainer.num_training_batches):  # else the epoch's end is near
            self.save(trainer, pl_module)
            if stop:
                SIGNALS.stop()

    def on_validation_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        if SIGNALS.training:  # the best checkpoint shall be a good one, too
            self.check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        self.epoch_ended = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        if self.epoch_ended:  # only now is the epoch before logged, and the learning rate on its way
            self.save(trainer, pl_module)
            if self.agreed(SIGNALS.asked is not None)[0]:
                SIGNALS.stop()

    def on_train_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        SIGNALS.training = False
        if self.epoch_ended:
            self.save(trainer, pl_module)
        if self.agreed(SIGNALS.asked is not None)[0]:
            SIGNALS.stop()

    def on_exception(self, trainer: Trainer, pl_module: ImageClassifier, exception: BaseException) -> None:  # type: ignore[override]
        SIGNALS.training = False

    def agreed(self, *wishes: bool) -> list[bool]:
        """Returns which wishes any of the processes has; asks no device."""
        if world_size() == 1:
            return list(wishes)
        votes = torch.tensor(wishes, dtype=torch.int32)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self.group)
        return [bool(vote) for vote in votes.numpy()]

    def save(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Writes `last.ckpt`, if the loss was finite so far. Raises NonFiniteLoss."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.check(trainer, pl_module)
        self.saving = True
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saving = self.epoch_ended = False
        self.saved = time.monotonic()

    def check(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Raises NonFiniteLoss in all processes, if the loss of any was not finite."""
        if self.agreed(int(self.bad) >= 0)[0]:
            raise self.failure(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: ImageClassifier, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        checkpoint["metrics"] = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
        if self.saving and self.epoch_ended:
            start_of_epoch(checkpoint["loops"]["fit_loop"])
        elif self.saving:
            states = {name: getattr(pl_module, name).metric_state for name in ("train_loss", "train_top1")}
            states = {name: {key: value.cpu() for key, value in state.items()} for name, state in states.items()}
            size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
            within = {"first_rate": pl_module.first_rate, "metrics": gathered(states), "batch_size": size}
            checkpoint["within_epoch"] = within

    def on_load_checkpoint(self, trainer: Trainer, pl_module: ImageClassifier, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        self.metrics, self.within = checkpoint.get("metrics", {}), checkpoint.get("within_epoch", {})
        if trainer.state.fn == TrainerFn.FITTING:
            now, before = (h["optimizer"].get("lr") for h in (pl_module.hparams, checkpoint["hyper_parameters"]))
            if now != before:  # given at the resume
                scale_rates(checkpoint, now / before)
        size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        if trainer.state.fn == TrainerFn.FITTING and self.within.get("batch_size", size) != size:
            count_batches(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], self.within["batch_size"], size)

    def failure(self, trainer: Trainer, pl_module: ImageClassifier) -> NonFiniteLoss:
        """Returns the error that names the step, the learning rate and the files of the batch."""
        train = trainer.datamodule.sets["train"]  # type: ignore[attr-defined]
        places = gathered((int(self.bad), trainer.global_rank))
        index, rank = min(place for place in places if place[0] >= 0)
        samples = next((indices.tolist() for batch, indices in self.recent if batch == index), [])
        names = gathered([train.name(sample) for sample in samples])[rank]
        listed = self.path.parent.parent / "nonfinite.txt"
        if trainer.is_global_zero:
            listed.write_text("\n".join(names) + "\n")
        before = f"The weights before are in {shown(self.path)}: try" if self.path.exists() else "Try"
        step = trainer.current_epoch * int(trainer.num_training_batches) + index
        error = NonFiniteLoss(
            f"the loss is not finite since batch {step} (epoch {trainer.current_epoch + 1}, batch {index + 1} of it, "
            f"learning rate {trainer.optimizers[0].param_groups[0]['lr']:g}); its files are in {shown(listed)} "
            f"({', '.join(names[:3])}, …). {before} a lower optimizer.lr, "
            "trainer.gradient_clip_val=1, or trainer.on_nonfinite=skip"
        )
        error.batch = (trainer.current_epoch, index)
        return error


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


def gathered(value: Any) -> list[Any]:
    """Returns the values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


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
