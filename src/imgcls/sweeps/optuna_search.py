"""Optuna search: proposes the jobs of a sweep, learns from their results, and ends those that fall behind."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import IntervalSweep, Override
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from imgcls.config.build import build
from imgcls.config.paths import hydra_quoted
from imgcls.errors import UserError
from imgcls.seeding import key_seed
from imgcls.sweeps.jobs import Job
from imgcls.sweeps.settings import SweepSettings

FILE = "study.journal"
MOST_KILLS = 3
RUNNING = [TrialState.RUNNING]
STATES = {  # the words of jobs for the states of trials
    "running": TrialState.RUNNING, "finished": TrialState.COMPLETE, "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED, "waiting": TrialState.WAITING,
}  # fmt: skip
WORDS = {state: word for word, state in STATES.items()}


class Search:
    """A study in the sweep's folder: several processes that run the same sweep share it. It searches the
    space of the overrides `swept` for the best `metrics`, each with a direction, "min" or "max". Raises
    UserError where the number of trials, the pruner or the space is wrong."""

    def __init__(
        self, settings: SweepSettings, folder: Path, metrics: list[str], directions: list[str],
        swept: list[Override],
    ) -> None:  # fmt: skip
        if settings.n_trials is None or settings.n_trials < 1:
            expected = "expected the number of trials in all, 1 or more"
            raise UserError(f"sweep.n_trials={settings.n_trials}: {expected}")
        if settings.pruner is not None and len(metrics) > 1:
            advice = "give one optimized_metric, or sweep.pruner=null"
            raise UserError(f"sweep.pruner: Optuna prunes by one metric; {advice}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Who chose an experimental sampler knows it.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.settings, self.folder, self.metric, self.total = settings, folder, metrics[0], settings.n_trials
        self.space = {override.get_key_element(): distribution(override) for override in swept}
        pruner = build(settings.pruner, "sweep.pruner") if settings.pruner else None
        self.storage = JournalStorage(JournalFileBackend(str(folder / FILE)))
        self.study = optuna.create_study(
            storage=self.storage, study_name=folder.name, load_if_exists=True,
            directions=["minimize" if word == "min" else "maximize" for word in directions],
            pruner=pruner or optuna.pruners.NopPruner(),
        )  # fmt: skip

    @contextmanager
    def working(self) -> Iterator[None]:
        """Holds a lock while this process runs trials; from it others know that the process is alive."""
        with tempfile.NamedTemporaryFile(prefix=".worker-", dir=self.folder) as file, FileLock(file.name):
            self.worker = Path(file.name).name
            yield

    def ask(self, count: int) -> list[FrozenTrial]:
        """Returns up to `count` trials to run next: first those of a killed worker, then new ones. The values
        of a trial depend on its number and on the trials before, not on when the search began."""
        with FileLock(self.folder / ".ask.lock"):
            self.count_kills()
            running = self.study.get_trials(states=RUNNING)
            numbers = [t.number for t in running if t.user_attrs.get("worker") is None][:count]
            while len(numbers) < count and (begun := len(self.study.get_trials(deepcopy=False))) < self.total:
                node = dict(self.settings.sampler or {})
                if node.get("seed") is not None:
                    node["seed"] = key_seed(node["seed"], begun) % 2**32
                self.study.sampler = build(node, "sweep.sampler")
                numbers.append(self.study.ask(self.space).number)
            for number in numbers:
                self.note(number, worker=self.worker)
        return [self.study.trials[number] for number in numbers]

    def count_kills(self) -> None:
        """Takes running trials from dead workers; a trial that was killed three times counts as failed."""
        for trial in self.study.get_trials(states=RUNNING):
            if (worker := trial.user_attrs.get("worker")) is None:
                continue
            try:
                with FileLock(self.folder / worker, blocking=False):  # a lock ends with its process
                    (self.folder / worker).unlink(missing_ok=True)
            except Timeout:
                continue
            kills = trial.user_attrs.get("killed", 0) + 1
            self.note(trial.number, worker=None, killed=kills)
            if kills == MOST_KILLS:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def note(self, number: int, **attributes: Any) -> None:
        """Writes attributes of a trial. Optuna's own Trial would ask the sampler for its values once more."""
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id(self.study, self.storage, number), key, value)

    def tell(self, job: Job) -> None:
        """Records the result of a job."""
        state = STATES[job.state]
        if state == TrialState.COMPLETE and any(value != value for value in job.values or [float("nan")]):
            state, job.error = TrialState.FAIL, "the metric is not a number"
        if job.error:
            self.note(job.number, error=job.error)
        try:
            self.study.tell(job.number, job.values if state == TrialState.COMPLETE else None, state)
        except RuntimeError:  # the sampler has drawn all values there are; the job is recorded
            self.total = len(self.study.trials)

    def jobs(self) -> list[Job]:
        """Returns all trials of the study as jobs."""
        jobs = []
        for trial in self.study.get_trials(deepcopy=False):
            noted, state = trial.user_attrs, WORDS[trial.state]
            folder = self.folder / noted.get("folder", str(trial.number))
            jobs.append(Job(trial.number, [], folder, state, trial.values, noted.get("error", "")))
        return jobs

    def pruning(self, trial: FrozenTrial) -> list[str]:
        """Returns the overrides that add the Pruning callback to a job."""
        if self.settings.pruner is None:
            return []
        given = {
            "_target_": f"{__name__}.Pruning", "study": (self.folder / FILE).resolve(),
            "number": trial.number, "metric": self.metric,
            **{f"pruner.{key}": value for key, value in self.settings.pruner.items()},
        }  # fmt: skip
        return [f"+callbacks.pruning.{key}={hydra_quoted(str(value))}" for key, value in given.items()]


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


def distribution(override: Override) -> BaseDistribution:
    """Returns the distribution of an interval of floats or, as int(interval(a, b)), of integers, each also as
    tag(log, …); or of the values of a list."""
    value: Any = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    kind: Any = IntDistribution if whole else FloatDistribution
    try:
        return kind(value.start, value.end, log="log" in value.tags)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def trial_id(study: optuna.Study, storage: JournalStorage, number: int) -> int:
    """Returns the name that the storage has for a trial, among those of all studies in it."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)
