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
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from imgcls.config.build import build
from imgcls.config.paths import hydra_quoted
from imgcls.errors import UserError
from imgcls.seeding import key_seed
from imgcls.sweeps.conditions import Branch, Space, valued
from imgcls.sweeps.jobs import Job
from imgcls.sweeps.pruning import Pruning, trial_id
from imgcls.sweeps.settings import SweepSettings
from imgcls.sweeps.space import choices

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
    space, with its branches, for the best `metrics`, each with a direction, "min" or "max". Raises
    UserError where the number of trials, the pruner or the space is wrong."""

    def __init__(
        self, settings: SweepSettings, folder: Path, metrics: list[str], directions: list[str],
        space: Space, branches: list[Branch],
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
        self.space, self.branches = space, branches
        for override in [*space.values(), *(one for branch in branches for one in branch.space.values())]:
            distribution(override)  # before the first trial
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
                self.seed(begun)
                numbers.append(self.draw(self.study.ask()))
            for number in numbers:
                try:
                    self.values(self.study.trials[number])
                except KeyError:  # its worker was killed before it had drawn all
                    self.seed(number)
                    self.draw(optuna.Trial(self.study, trial_id(self.study, self.storage, number)))
                self.note(number, worker=self.worker)
        return [self.study.trials[number] for number in numbers]

    def seed(self, number: int) -> None:
        """Gives the study the sampler for a trial."""
        node = dict(self.settings.sampler or {})
        if node.get("seed") is not None:
            node["seed"] = key_seed(node["seed"], number) % 2**32
        self.study.sampler = build(node, "sweep.sampler")

    def draw(self, trial: optuna.Trial) -> int:
        """Draws the values of a trial that it does not have yet; returns its number."""

        def value(name: str, override: Override) -> Any:
            drawn = distribution(override)
            if isinstance(drawn, CategoricalDistribution):
                return trial.suggest_categorical(name, drawn.choices)
            suggest: Any = trial.suggest_int if isinstance(drawn, IntDistribution) else trial.suggest_float
            return suggest(name, drawn.low, drawn.high, log=drawn.log)

        valued(self.space, self.branches, value)
        return trial.number

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """Returns the value that a trial has for each key."""
        return valued(self.space, self.branches, lambda name, _: trial.params[name])

    def front(self) -> list[Job]:
        """Returns the trials that no other one is better than in all objectives."""
        best = {trial.number for trial in self.study.best_trials}
        return [job for job in self.jobs() if job.number in best]

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
            "_target_": f"{Pruning.__module__}.Pruning", "study": (self.folder / FILE).resolve(),
            "number": trial.number, "metric": self.metric,
            **{f"pruner.{key}": value for key, value in self.settings.pruner.items()},
        }  # fmt: skip
        return [f"+callbacks.pruning.{key}={hydra_quoted(str(value))}" for key, value in given.items()]


def distribution(override: Override) -> CategoricalDistribution | FloatDistribution | IntDistribution:
    """Returns the distribution of an interval of floats or, as int(interval(a, b)), of integers, each also as
    tag(log, …); or of the values of a list."""
    value: Any = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(choices(override))
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    kind: Any = IntDistribution if whole else FloatDistribution
    try:
        found: FloatDistribution | IntDistribution = kind(value.start, value.end, log="log" in value.tags)
        return found
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error
