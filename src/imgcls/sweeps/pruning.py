"""Pruning: ends a training that falls behind the others of its search."""

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


class Pruning(Callback):
    """Reports the metric to the study, a file, after each validation, and ends a trial, with its number, that
    falls behind the others by the `pruner`."""

    def __init__(self, study: str, number: int, metric: str, pruner: optuna.pruners.BasePruner) -> None:
        self.number, self.metric, self.pruned = number, metric, False
        self.storage = JournalStorage(JournalFileBackend(study))
        self.pruner = pruner
        self.study = optuna.load_study(study_name=None, storage=self.storage, pruner=pruner)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        value, behind = float(trainer.callback_metrics[self.metric]), False
        if trainer.is_global_zero:
            trial = trial_id(self.study, self.storage, self.number)
            self.storage.set_trial_intermediate_value(trial, trainer.current_epoch, value)
            behind = self.pruner.prune(self.study, self.storage.get_trial(trial))
        if trainer.strategy.broadcast(behind):  # all ranks stop, or none
            self.pruned = trainer.should_stop = True


def trial_id(study: optuna.Study, storage: JournalStorage, number: int) -> int:
    """Returns the name that the storage has for a trial, among those of all studies in it."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)
