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

from imgcls.config.paths import shown
from imgcls.engine.lightning_state import count_batches, follow_schedules, scale_rates, start_of_epoch
from imgcls.engine.save_config import SaveConfig
from imgcls.engine.signals import SIGNALS
from imgcls.errors import UserError
from imgcls.loggers.epoch_csv import EpochCSV
from imgcls.processes import world_size
from imgcls.runs.checkpoints import STATES, newest, not_finite
from imgcls.tasks.classification import ImageClassifier

EVERY = 8  # steps after which ranks ask each other whether to save or to stop


class NonFiniteLoss(UserError):
    """The loss, or the weights after it, became infinite or NaN in the batch `(epoch, batch index)`."""

    batch: tuple[int, int]


class Safeguard(Checkpoint):
    """Writes `last.ckpt`, from which a run goes on as if it had never stopped: after each epoch, when all of it is
    logged; every `every_minutes` within epochs; and when a signal asks to stop. `previous.ckpt` is the one before.

    A loss that is not finite is noticed on the device, and the host learns of it without waiting. Before anything is
    saved, the weights and buffers are looked at too, so a checkpoint is always good.
    """

    monitor, best_model_path = None, ""  # as of a ModelCheckpoint, for a run without one

    def __init__(self, dirpath: str, every_minutes: float = 10.0) -> None:
        if not every_minutes > 0:
            raise UserError(f"Safeguard: every_minutes={every_minutes}: expected a number above 0")
        self.path, self.every_minutes, self.saved = Path(dirpath) / "last.ckpt", every_minutes, 0.0
        self.saving = self.epoch_ended = False
        self.infinite: list[str] = []  # buffers that are so from the beginning, such as a mask
        self.metrics: dict[str, Any] = {}  # that were logged last before the checkpoint
        self.within: dict[str, Any] = {}  # what a checkpoint brought that was written within an epoch

    def setup(self, trainer: Trainer, pl_module: ImageClassifier, stage: str) -> None:  # type: ignore[override]
        if stage == "fit":  # before a checkpoint is loaded
            self.infinite = not_finite(dict(pl_module.named_buffers()))

    def on_fit_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        # Lightning's agreement on SIGTERM waits for the device in each step; ours is in `agreed`.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        # With max_steps it would take the end of an epoch for the middle of one.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        other = world_size() > 1 and distributed.get_backend() != "gloo"
        self.group: Any = distributed.new_group(backend="gloo") if other else None
        self.bad = torch.full(
            (), -1, device=pl_module.device
        )  # the first batch with a loss that is not finite
        self.seen = torch.full((), -1, pin_memory=self.bad.is_cuda)  # what the host knows of it
        self.recent: deque[tuple[int, int, Tensor]] = deque(
            maxlen=2 * EVERY * trainer.accumulate_grad_batches
        )

    def on_train_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        SIGNALS.install()  # once more: Lightning put its own in front
        SIGNALS.training, self.saved = True, time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, EpochCSV):
                logger.keep(trainer.current_epoch)
        trainer.callback_metrics.update(self.metrics)
        if self.metrics:  # it is a resume
            follow_schedules(trainer)
        if (
            trainer.fit_loop.restarted_mid_epoch
        ):  # Lightning leaves these out, and what they set is in no checkpoint
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
        self.recent.append((trainer.current_epoch, batch_idx, batch.indices))
        self.bad = torch.where(outputs["loss"].detach().isfinite() | (self.bad >= 0), self.bad, batch_idx)
        bad = bool(self.seen.numpy() >= 0)
        self.seen.copy_(self.bad, non_blocking=True)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (
            world_size() > 1 and trainer.global_step % EVERY
        ):
            return
        late = time.monotonic() - self.saved > 60 * self.every_minutes
        save, stop, bad = self.agreed(late, SIGNALS.asked is not None, bad)
        if bad or (
            (save or stop) and batch_idx + 1 < trainer.num_training_batches
        ):  # else the epoch's end is near
            self.save(trainer, pl_module)
            if stop:
                SIGNALS.stop()

    def on_validation_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        if SIGNALS.training:  # what is measured shall be of a good network
            self.check(trainer, pl_module.state_dict())

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
        """Writes `last.ckpt`, if all is finite. Raises NonFiniteLoss."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.saving = True
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saving = self.epoch_ended = False
        self.saved = time.monotonic()

    def check(self, trainer: Trainer, *states: dict[str, Tensor]) -> None:
        """Raises NonFiniteLoss in all processes, if the loss or a tensor of any was not finite."""
        spoilt = [name for state in states for name in not_finite(state) if name not in self.infinite]
        if self.agreed(int(self.bad) >= 0 or bool(spoilt))[0]:
            self.saving = False
            raise self.failure(trainer, spoilt)

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ImageClassifier, checkpoint: dict[str, Any]
    ) -> None:
        self.check(trainer, *(checkpoint[key] for key in STATES if key in checkpoint))
        checkpoint["infinite"] = self.infinite
        for saver in trainer.callbacks if self.saving else []:  # type: ignore[attr-defined]
            if isinstance(saver, SaveConfig):
                saver.keep(trainer)
        checkpoint["metrics"] = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
        if self.saving and self.epoch_ended:
            start_of_epoch(checkpoint["loops"]["fit_loop"])
        elif self.saving:
            states = {name: getattr(pl_module, name).metric_state for name in ("train_loss", "train_top1")}
            states = {
                name: {key: value.cpu() for key, value in state.items()} for name, state in states.items()
            }
            size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
            within = {"first_rate": pl_module.first_rate, "metrics": gathered(states), "batch_size": size}
            checkpoint["within_epoch"] = within

    def on_load_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ImageClassifier, checkpoint: dict[str, Any]
    ) -> None:
        self.metrics, self.within = checkpoint.get("metrics", {}), checkpoint.get("within_epoch", {})
        if trainer.state.fn == TrainerFn.FITTING:
            now, before = (
                h["optimizer"].get("lr") for h in (pl_module.hparams, checkpoint["hyper_parameters"])
            )
            if now != before and not before:
                raise UserError(
                    f"optimizer.lr={now}: the run's rates are {before}, and can't be scaled; start a new run"
                )
            if now != before:  # given at the resume
                scale_rates(checkpoint, now / before)
        size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        if trainer.state.fn == TrainerFn.FITTING and self.within.get("batch_size", size) != size:
            count_batches(
                checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], self.within["batch_size"], size
            )

    def failure(self, trainer: Trainer, spoilt: list[str]) -> NonFiniteLoss:
        """Returns the error that names the step, the learning rate, the files of the batch, and what to go on from."""
        places = [place for place in gathered((int(self.bad), trainer.global_rank)) if place[0] >= 0]
        epoch, index, indices = self.recent[-1]
        if places:
            index, rank = min(places)
            indices = next((found for _, batch, found in self.recent if batch == index), torch.empty(0))
            names = gathered([trainer.datamodule.sets["train"].name(i) for i in indices.tolist()])[rank]  # type: ignore[attr-defined]
            listed = self.path.parent.parent / "nonfinite.txt"
            if trainer.is_global_zero:
                listed.write_text("\n".join(names) + "\n")
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        batch = epoch * int(trainer.num_training_batches) + index
        where = f"batch {batch} (epoch {epoch + 1}, batch {index + 1} of it, learning rate {rate:g})"
        if places:
            what = f"the loss is not finite since {where}; its files are in {shown(listed)} ({', '.join(names[:3])}, …)"
        else:
            spoilt = max(gathered(spoilt), key=len)
            what = f"the network is not finite after {where}; tensors with NaN or infinity: {len(spoilt)}, such as {spoilt[0]}"
        sound, _ = newest(self.path.parent)
        before = (
            f"The weights before are in {shown(sound)}: try"
            if sound
            else "There is no checkpoint before it: try"
        )
        advice = "a lower optimizer.lr or trainer.gradient_clip_val=1"
        error = NonFiniteLoss(f"{what}. {before} {advice}")
        error.batch = (epoch, index)
        return error


def gathered(value: Any) -> list[Any]:
    """Returns the values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values
