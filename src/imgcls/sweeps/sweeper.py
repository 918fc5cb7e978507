"""Sweep, Hydra's sweeper for `imgcls train -m`: decides which jobs there are, runs them, reports their
results. A grid knows its jobs from the start; a search asks Optuna for the next when one has ended. Hydra's
launcher decides where jobs run."""

import gc
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from imgcls.config import check as configs
from imgcls.config.paths import hydra_quoted, remove_empty, shown
from imgcls.config.training import Metrics
from imgcls.errors import UserError
from imgcls.sweeps.check_jobs import check_jobs, directions
from imgcls.sweeps.conditions import read_branches
from imgcls.sweeps.jobs import Job, Jobs, job_name, short_hash
from imgcls.sweeps.launching import stoppable
from imgcls.sweeps.record import numbers, record, values_of
from imgcls.sweeps.runner import Runner
from imgcls.sweeps.settings import SweepSettings
from imgcls.sweeps.space import read_overrides, value_text


class Sweep(Sweeper):
    """Runs the jobs of `imgcls train -m …`; a job that fails is recorded and stops no other."""

    config: DictConfig
    launcher: Launcher

    def __init__(self, **_: Any) -> None:
        """Takes the keys of `hydra.sweeper`, which `setup` reads, with those of `sweep`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Reads and checks what is swept, and names the directory, before Hydra makes it."""
        self.config = config
        self.settings = SweepSettings.read(config)
        self.read_space(hydra_context.config_loader)
        self.identity = self.check(hydra_context.config_loader)
        self.name_folder()
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        self.kind = config.hydra.launcher._target_.rpartition(".")[2]
        self.front = list[Job]()  # the best for several objectives
        self.jobs = Jobs(self.folder.name, self.metrics[0], self.directions[0])
        at_once = self.settings.n_jobs if (self.settings.n_jobs or 0) > 0 else None
        self.runner = Runner(self.launcher, self.kind, self.jobs, self.metrics, at_once)

    def read_space(self, loader: ConfigLoader) -> None:
        """Reads what is varied. Raises UserError: there is nothing to search, or a grid has conditions."""
        self.where, overrides = read_overrides(loader, self.config, self.settings)
        self.fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
        self.space = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        self.branches = read_branches(loader, self.settings.when, self.space)
        if self.branches and self.settings.sampler is None:
            raise UserError("sweep.when: a grid has no conditions; a search has, as sweep=optuna")
        if self.settings.sampler is not None and not self.space:
            advice = "give a space, such as optimizer.lr=interval(0.01,1)"
            raise UserError(f"sweep: there is nothing to search; {advice}")

    def check(self, loader: ConfigLoader) -> dict[str, Any]:
        """Checks all jobs and the metrics that are optimised; returns what makes this sweep another than
        those with another identity."""
        metric = self.config.optimized_metric
        metric = OmegaConf.to_container(metric) if OmegaConf.is_config(metric) else metric
        metric = configs.typed(metric, Metrics, "optimized_metric")
        self.metrics = [metric] if isinstance(metric, str) else metric
        known = check_jobs(loader, self.config, [*self.where, *self.fixed], self.space, self.branches)
        given, said = self.config.get("optimized_mode"), self.settings.direction is not None
        self.directions = directions(self.settings.modes(self.metrics, given), self.metrics, known, said)
        if said and given is None:  # the jobs pick their best epoch by it
            mode = self.directions[0] if len(self.directions) == 1 else f"[{','.join(self.directions)}]"
            self.where.append(f"optimized_mode={mode}")
        identity = {
            "verb": self.config.hydra.job.config_name,
            "optimized_metric": self.metrics,
            "directions": self.directions,
            "sampler": (self.settings.sampler or {}).get("_target_", "none"),
            "pruner": (self.settings.pruner or {}).get("_target_", "none"),
            "fixed": self.fixed,
            "space": {key: value_text(override) for key, override in self.space.items()},
        }
        texts = {
            branch.condition: {key: value_text(override) for key, override in branch.space.items()}
            for branch in self.branches
        }
        return identity | ({"when": texts} if texts else {})

    def name_folder(self) -> None:
        """Names the sweep and its directory: by time, or so that the same command finds a search again."""
        name, hydra = self.settings.name, self.config.hydra
        if name is None and self.settings.sampler is not None:
            preset, data, backbone = (hydra.runtime.choices.get(g) for g in ("sweep", "data", "backbone"))
            parts = ["optuna" if preset in (None, "grid") else preset, data, backbone]
            name = "-".join([*parts, short_hash(json.dumps(self.identity))])
        given = any(o.startswith("hydra.sweep.dir=") for o in hydra.overrides.hydra)
        if given and self.settings.name not in (None, Path(hydra.sweep.dir).name):
            where = f"hydra.sweep.dir={shown(hydra.sweep.dir)}"
            raise UserError(f"sweep.name={name}: {where} names the sweep, too; give one of the two")
        self.stays = given or name is not None  # the same command finds it again
        if name is not None and not given:
            with read_write(hydra.sweep):
                hydra.sweep.dir = str(Path(hydra.sweep.dir).with_name(name))
        self.folder = Path(hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        new = not self.folder.is_dir() or not any(self.folder.iterdir())
        try:
            self.record()
            with stoppable(self.launcher, self.kind, self.folder):
                self.grid() if self.settings.sampler is None else self.search()
        except UserError:
            if new and not self.runner.trained:
                self.take_back()
            raise
        except (SystemExit, KeyboardInterrupt) as ended:
            for job in self.jobs.begun:
                job.mark_stopped()
            where = "" if self.stays else f" and hydra.sweep.dir={hydra_quoted(shown(self.folder))}"
            print(f"sweep {self.folder.name}: stopped; go on with the same command{where}", flush=True)
            raise ended if isinstance(ended, SystemExit) else SystemExit(130) from ended
        finally:
            gc.unfreeze()  # or extension modules complain at the end that they leak
        self.report()

    def take_back(self) -> None:
        """Removes the directory of a sweep that has trained nothing, and those above it if they are empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        remove_empty(self.folder.parent, self.folder.parent.parent)

    def record(self) -> None:
        """Writes sweep.yaml, which says what is run. Refuses a folder of another sweep."""
        search = self.settings.sampler is not None
        limit = {"n_trials": self.settings.n_trials} if search else {}
        words = sys.orig_argv[sys.orig_argv.index("train") :] if "train" in sys.orig_argv else sys.argv
        more = [] if self.stays else [f"hydra.sweep.dir={hydra_quoted(shown(self.folder))}"]
        go_on = {"go_on": shlex.join(["imgcls", *words, *more])}
        self.spaces = record(self.folder, self.identity, go_on | limit, grows=not search)

    def grid(self) -> None:
        """Runs a job for each combination, but those that an earlier start of this sweep has finished."""
        for override in self.space.values():
            if not override.is_discrete_sweep():
                advice = "a grid takes lists; an interval is searched, by sweep=optuna"
                raise UserError(f"{override.input_line}: {advice}")
        keys, number_of = list(self.spaces[0]), numbers(self.spaces)
        jobs = [
            self.job(number_of[values], [f"{key}={value}" for key, value in zip(keys, values, strict=True)])
            for values in values_of(self.identity["space"], keys)
        ]
        self.jobs.total, self.jobs.begun = len(jobs), [job for job in jobs if job.done()]
        for job in self.jobs.begun:
            self.runner.settle(job)
        self.jobs.line()
        self.runner.run([job for job in jobs if job.state == "running"])
        print(self.jobs.line(), flush=True)

    def search(self) -> None:
        """Runs trials until there are `sweep.n_trials` in all, with those of other starts and processes."""
        from imgcls.sweeps.optuna_search import Search

        search = Search(self.settings, self.folder, self.metrics, self.directions, self.space, self.branches)
        self.jobs.total, self.jobs.begun = search.total, search.jobs()
        self.jobs.line()

        def begin() -> Job | None:
            for trial in search.ask(1):
                values = [f"{key}={value}" for key, value in search.values(trial).items()]
                job = self.job(trial.number, values, search.pruning(trial))
                search.note(trial.number, folder=job.folder.name)
                return job
            return None

        def end(job: Job) -> None:
            search.tell(job)
            self.jobs.total, self.jobs.begun = search.total, search.jobs()
            if not self.runner.hopeless():  # of a mistake one line is enough
                print(self.jobs.line(), flush=True)

        with search.working():
            self.runner.keep_going(begin, end)
        self.front = search.front() if len(self.metrics) > 1 else []

    def job(self, number: int, values: list[str], more: Sequence[str] = ()) -> Job:
        """Returns a job in a folder named by the swept values that it overrides, but not by `more`."""
        excluded = self.config.hydra.job.config.override_dirname.exclude_keys
        name = job_name(values, set(excluded))
        folder = self.folder / (f"{number}_{name}" if name else f"{number}")
        own = [
            f"job.sweep={hydra_quoted(self.folder.name)}", f"job.number={number}",
            f"hydra.sweep.dir={hydra_quoted(str(self.folder))}", f"hydra.sweep.subdir='{folder.name}'",
            f"hydra.job.override_dirname='{name}'",
        ]  # fmt: skip
        return Job(number, [*self.where, *self.fixed, *values, *more, *own], folder)

    def report(self) -> None:
        """Prints where the results are. Raises UserError: a job of a grid failed, or all jobs of a search."""
        for job in self.front:
            values = ", ".join(f"{m} {v:.4g}" for m, v in zip(self.metrics, job.values or [], strict=False))
            print(f"no job is better in all (Pareto front): {values}: {shown(job.folder)}")
        if (best := self.jobs.best()) is not None and not self.front:
            print(f"best job: {shown(best.folder)}")
        folder = shown(self.folder)
        print(f"sweep directory: {folder}\ncompare: imgcls compare runs={hydra_quoted(folder)}")
        failed = [job.folder.name for job in self.jobs.begun if job.state == "failed"]
        if failed and (self.settings.sampler is None or len(failed) == len(self.jobs.begun)):
            others = "" if len(failed) == len(self.jobs.begun) else ", the others are done"
            raise UserError(f"{len(failed)} of {self.jobs.total} jobs failed{others}: {', '.join(failed)}")
