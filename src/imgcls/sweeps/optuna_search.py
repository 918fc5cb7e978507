"""Searches: Optuna proposes the jobs of a sweep, learns from them, and ends those that fall behind."""

import tempfile
import warnings
from pathlib import Path
from typing import Any, Protocol

import optuna
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import IntervalSweep, Override
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from imgcls.config import check as configs
from imgcls.config.paths import hydra_quoted
from imgcls.errors import UserError
from imgcls.seeding import key_seed
from imgcls.sweeps.jobs import Job, Jobs
from imgcls.sweeps.space import Settings

FILE = "study.journal"
MOST_KILLS = 3
RUNNING = TrialState.RUNNING
STATES = {
    RUNNING: "running", TrialState.COMPLETE: "finished", TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned", TrialState.WAITING: "waiting",
}  # fmt: skip


class Sweep(Protocol):
    """The sweep whose trials Optuna proposes, as far as the search knows it (imgcls.sweeps.sweeper has it)."""

    settings: Settings
    metrics: list[str]
    directions: list[str]
    swept: list[Override]
    jobs: Jobs
    folder: Path

    def job(self, number: int, values: list[str], more: list[str] | None = None) -> Job: ...

    def run(self, jobs: list[Job]) -> None: ...

    def at_once(self) -> int: ...


def search(sweep: Sweep) -> None:
    """Runs trials until there are `sweep.n_trials` in all, those of former starts and of other workers among them.

    Raises:
        UserError: a sampler, a pruner or a space that can't be had.
    """
    settings = sweep.settings
    if settings.n_trials is None or settings.n_trials < 1:
        raise UserError(
            f"sweep.n_trials={settings.n_trials}: expected the number of trials in all, 1 or more"
        )
    if settings.pruner is not None and len(sweep.metrics) > 1:
        raise UserError(
            "sweep.pruner: Optuna prunes by one metric; give one optimized_metric, or sweep.pruner=null"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings(
        "ignore", category=optuna.exceptions.ExperimentalWarning
    )  # by who chose the sampler
    sweep.jobs.total = settings.n_trials
    space = {override.get_key_element(): distribution(override) for override in sweep.swept}
    pruner = configs.build(settings.pruner, "sweep.pruner") if settings.pruner else optuna.pruners.NopPruner()
    study = optuna.create_study(
        storage=journal(sweep.folder / FILE), study_name=sweep.folder.name, load_if_exists=True,
        directions=["minimize" if word == "min" else "maximize" for word in sweep.directions], pruner=pruner,
    )  # fmt: skip
    sweep.jobs.begun = [known(sweep, trial) for trial in study.trials]
    sweep.jobs.line()
    with tempfile.NamedTemporaryFile(prefix=".worker-", dir=sweep.folder) as file, FileLock(file.name):
        while batch := ask(study, space, sweep, Path(file.name).name):
            jobs = [
                sweep.job(t.number, [f"{k}={v}" for k, v in t.params.items()], pruning(sweep, t))
                for t in batch
            ]
            for job in jobs:
                note(study, job.number, folder=job.folder.name)
            sweep.run(jobs)
            for job in jobs:
                try:
                    tell(study, job)
                except RuntimeError:  # how a sampler says that it has drawn all there is; the job is recorded
                    sweep.jobs.total = len(study.trials)
            sweep.jobs.begun = [known(sweep, trial) for trial in study.trials]
            print(sweep.jobs.line(), flush=True)


def distribution(override: Override) -> BaseDistribution:
    """Returns what is drawn from: an interval of floats or, as int(interval(a, b)), of integers, each also as
    tag(log, …); or the values of a list."""
    value: Any = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    assert value.start is not None and value.end is not None
    kind = (
        IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
    )
    try:
        return kind(value.start, value.end, log="log" in value.tags)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def ask(
    study: optuna.Study, space: dict[str, BaseDistribution], sweep: Sweep, worker: str
) -> list[FrozenTrial]:
    """Returns the trials to run next: first those that a killed worker left, then new ones.

    What is drawn for a trial depends on its number and on the trials before, not on when the search was started.
    """
    with FileLock(sweep.folder / ".ask.lock"):
        count_kills(study, sweep.folder)
        numbers = [t.number for t in study.get_trials(states=[RUNNING]) if t.user_attrs.get("worker") is None]
        numbers = numbers[: sweep.at_once()]
        while len(numbers) < sweep.at_once() and len(study.trials) < sweep.jobs.total:
            node = dict(sweep.settings.sampler or {})
            if node.get("seed") is not None:
                node["seed"] = key_seed(node["seed"], len(study.trials)) % 2**32
            study.sampler = configs.build(node, "sweep.sampler")
            numbers.append(study.ask(space).number)
        for number in numbers:
            note(study, number, worker=worker)
    return [study.trials[number] for number in numbers]


def count_kills(study: optuna.Study, folder: Path) -> None:
    """Takes running trials from workers that are dead; one that was killed three times counts as failed."""
    for trial in study.get_trials(states=[RUNNING]):
        if (worker := trial.user_attrs.get("worker")) is None:
            continue
        try:
            with FileLock(folder / worker, blocking=False):  # a lock ends with the process that holds it
                (folder / worker).unlink(missing_ok=True)
        except Timeout:
            continue
        kills = trial.user_attrs.get("killed", 0) + 1
        note(study, trial.number, worker=None, killed=kills)
        if kills == MOST_KILLS:
            study.tell(trial.number, state=TrialState.FAIL)


def note(study: optuna.Study, number: int, **attributes: Any) -> None:
    """Writes down something about a trial. Optuna's own Trial would ask the sampler for its parameters once more."""
    for key, value in attributes.items():
        study._storage.set_trial_user_attr(study.trials[number]._trial_id, key, value)


def tell(study: optuna.Study, job: Job) -> None:
    """Records what became of a job."""
    state = next(state for state, word in STATES.items() if word == job.state)
    if state == TrialState.COMPLETE and (job.values is None or any(value != value for value in job.values)):
        state, job.error = TrialState.FAIL, "the metric is not a number"
    if job.error:
        note(study, job.number, error=job.error)
    study.tell(job.number, job.values if state == TrialState.COMPLETE else None, state)


def known(sweep: Sweep, trial: FrozenTrial) -> Job:
    """Returns a trial of the study as a job."""
    folder = sweep.folder / trial.user_attrs.get("folder", str(trial.number))
    return Job(trial.number, [], folder, STATES[trial.state], trial.values, trial.user_attrs.get("error", ""))


def pruning(sweep: Sweep, trial: FrozenTrial) -> list[str]:
    """Returns the overrides that let a job learn from the study that it falls behind."""
    if sweep.settings.pruner is None:
        return []
    given = {
        "_target_": f"{__name__}.Pruning",
        "study": str((sweep.folder / FILE).resolve()),
        "number": trial.number,
    }
    given |= {
        "metric": sweep.metrics[0],
        **{f"pruner.{key}": value for key, value in sweep.settings.pruner.items()},
    }
    return [f"+callbacks.pruning.{key}={hydra_quoted(str(value))}" for key, value in given.items()]


class Pruning(Callback):
    """Reports a metric to the study after each validation, and ends a trial that falls behind the others.

    Args:
        study: the study's file.
        number: of this trial in it.
        metric: what is optimised.
        pruner: the pruner's `_target_` and arguments.
    """

    def __init__(self, study: str, number: int, metric: str, pruner: dict[str, Any]) -> None:
        self.study, self.number, self.metric = study, number, metric
        self.pruner: optuna.pruners.BasePruner = configs.build(pruner, "sweep.pruner")
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.metric])
        behind = trainer.is_global_zero and self.falls_behind(value, trainer.current_epoch)
        if trainer.strategy.broadcast(behind):  # all ranks stop, or none
            self.pruned = trainer.should_stop = True

    def falls_behind(self, value: float, epoch: int) -> bool:
        """Reports a value and returns what the pruner says of it."""
        study = optuna.load_study(study_name=None, storage=journal(self.study), pruner=self.pruner)
        study._storage.set_trial_intermediate_value(study.trials[self.number]._trial_id, epoch, value)
        return self.pruner.prune(study, study.trials[self.number])


def journal(path: str | Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))
