"""Sweep, Hydra's sweeper for `imgcls train -m`: decides which jobs there are, runs them, reports their
results. A grid knows its jobs from the start; a search asks Optuna for one batch after the other. Hydra's
launcher decides where jobs run."""

import gc
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from imgcls.config import check as configs
from imgcls.config.paths import hydra_quoted, shown
from imgcls.config.training import Metrics
from imgcls.engine.signals import SIGNALS
from imgcls.errors import InUse, UserError, one_line
from imgcls.runs.record import yaml_text
from imgcls.runs.run_files import optimised
from imgcls.sweeps.jobs import LOCAL, Job, Jobs, job_name, outcomes, repeated, short_hash, stoppable
from imgcls.sweeps.settings import SweepSettings
from imgcls.sweeps.space import check_space, choices, directions, read_overrides, value_text


class Sweep(Sweeper):
    """Runs the jobs of `imgcls train -m …`; a job that fails is recorded and stops no other."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, **_: Any) -> None:
        """Takes the keys of `hydra.sweeper`, which `setup` reads, with those of `sweep`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Reads and checks what is swept, and names the directory, before Hydra makes it."""
        self.hydra_context, self.config = hydra_context, config
        self.settings = SweepSettings.read(config)
        self.where, overrides = read_overrides(hydra_context.config_loader, config, self.settings)
        self.fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
        self.swept = [o for o in overrides if o.is_sweep_override()]
        metric = config.optimized_metric
        metric = OmegaConf.to_container(metric) if OmegaConf.is_config(metric) else metric
        metric = configs.typed(metric, Metrics, "optimized_metric")
        self.metrics = [metric] if isinstance(metric, str) else metric
        if self.settings.sampler is not None and not self.swept:
            advice = "give a space, such as optimizer.lr=interval(0.01,1)"
            raise UserError(f"sweep: there is nothing to search; {advice}")
        known = check_space(hydra_context.config_loader, config, [*self.where, *self.fixed], self.swept)
        modes, said = self.settings.modes(self.metrics, config.get("optimized_mode")), self.settings.direction
        self.directions = directions(modes, self.metrics, known, said is not None)
        if said is not None and config.get("optimized_mode") is None:  # the jobs pick their best epoch by it
            mode = self.directions[0] if len(self.directions) == 1 else f"[{','.join(self.directions)}]"
            self.where.append(f"optimized_mode={mode}")
        self.identity = {
            "verb": config.hydra.job.config_name,
            "optimized_metric": self.metrics,
            "directions": self.directions,
            "sampler": (self.settings.sampler or {}).get("_target_", "none"),
            "pruner": (self.settings.pruner or {}).get("_target_", "none"),
            "fixed": self.fixed,
            "space": {o.get_key_element(): value_text(o) for o in self.swept},
        }
        self.name_folder()
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        self.kind = config.hydra.launcher._target_.rpartition(".")[2]
        self.local = self.kind == LOCAL
        self.jobs = Jobs(self.folder.name, self.metrics[0], self.directions[0])

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
        self.record()
        try:
            with stoppable(self.launcher, self.kind, self.folder):
                self.grid() if self.settings.sampler is None else self.search()
        except (SystemExit, KeyboardInterrupt) as ended:
            for job in self.jobs.begun:
                job.mark_stopped()
            where = "" if self.stays else f" and hydra.sweep.dir={hydra_quoted(shown(self.folder))}"
            print(f"sweep {self.folder.name}: stopped; go on with the same command{where}", flush=True)
            raise ended if isinstance(ended, SystemExit) else SystemExit(130) from ended
        finally:
            gc.unfreeze()  # or extension modules complain at the end that they leak
        self.report()

    def record(self) -> None:
        """Writes sweep.yaml, which says what is run. Refuses a folder of another sweep."""
        path = self.folder / "sweep.yaml"
        found = yaml.safe_load(path.read_text()) if path.is_file() else self.identity
        for key, value in self.identity.items():
            if found.get(key) != value:
                what = f"its {key} is {found.get(key)}, not {value}; give another sweep.name"
                raise UserError(f"{shown(self.folder)} holds another sweep: {what}")
        self.folder.mkdir(parents=True, exist_ok=True)
        words = {"name": self.folder.name, "command": shlex.join(sys.orig_argv), **self.identity}
        limit = {"n_trials": self.settings.n_trials} if self.settings.sampler else {}
        path.write_text(yaml_text(words | limit))

    def grid(self) -> None:
        """Runs a job for each combination, but those that an earlier start of this sweep has finished."""
        for override in self.swept:
            if not override.is_discrete_sweep():
                advice = "a grid takes lists; an interval is searched, by sweep=optuna"
                raise UserError(f"{override.input_line}: {advice}")
        lists = [[f"{o.get_key_element()}={value}" for value in choices(o)] for o in self.swept]
        jobs = [self.job(number, [*own]) for number, own in enumerate(itertools.product(*lists))]
        self.jobs.total, self.jobs.begun = len(jobs), [job for job in jobs if job.done()]
        for job in self.jobs.begun:
            self.settle(job)
        self.jobs.line()
        self.run([job for job in jobs if job.state == "running"])
        print(self.jobs.line(), flush=True)

    def search(self) -> None:
        """Runs trials until there are `sweep.n_trials` in all, with those of other starts and processes."""
        from imgcls.sweeps.optuna_search import Search

        search = Search(self.settings, self.folder, self.metrics, self.directions, self.swept)
        self.jobs.total, self.jobs.begun = search.total, search.jobs()
        self.jobs.line()
        with search.working():
            while trials := search.ask(self.at_once()):
                jobs = []
                for trial in trials:
                    values = [f"{key}={value}" for key, value in trial.params.items()]
                    jobs.append(self.job(trial.number, values, search.pruning(trial)))
                    search.note(trial.number, folder=jobs[-1].folder.name)
                self.run(jobs)
                for job in jobs:
                    search.tell(job)
                self.jobs.total, self.jobs.begun = search.total, search.jobs()
                print(self.jobs.line(), flush=True)

    def job(self, number: int, values: list[str], more: Sequence[str] = ()) -> Job:
        """Returns a job in a folder named by the swept values that it overrides, but not by `more`."""
        excluded = self.config.hydra.job.config.override_dirname.exclude_keys
        name = job_name(values + self.fixed, set(excluded))
        folder = self.folder / f"{number}_{name}"
        own = [
            f"job.sweep={hydra_quoted(self.folder.name)}", f"job.number={number}",
            f"hydra.sweep.dir={hydra_quoted(str(self.folder))}", f"hydra.sweep.subdir='{folder.name}'",
            f"hydra.job.override_dirname='{name}'",
        ]  # fmt: skip
        return Job(number, [*self.where, *self.fixed, *values, *more, *own], folder)

    def at_once(self) -> int:
        """Returns how many jobs the launcher gets at a time."""
        number: int = self.settings.n_jobs or OmegaConf.select(self.config, "hydra.launcher.n_jobs") or 1
        return number if number > 0 else os.cpu_count() or 1

    def run(self, left: list[Job]) -> None:
        """Runs jobs. A job that another process runs is run here only if that process doesn't finish it."""
        at_once = self.at_once() if self.local or self.settings.n_jobs else len(left)
        waits = False
        while left:
            SIGNALS.install()  # a job that ran in this process has given them back
            if SIGNALS.asked is not None:
                SIGNALS.stop()
            free = [job for job in left if job.done() or not job.in_use()][:at_once]
            if free:
                self.launch(free)
            elif not waits:
                waits = True
                print(f"{self.jobs.line()}; waits for jobs that another process runs", flush=True)
            left = [job for job in left if job.state == "running"]
            if free and left:
                print(self.jobs.line(), flush=True)
            time.sleep(0 if free else 2)

    def launch(self, jobs: list[Job]) -> None:
        """Runs those of the jobs that are not done, and settles all of them."""
        self.jobs.begun += [job for job in jobs if job not in self.jobs.begun]
        left = [job for job in jobs if not job.done()]
        if left and self.local:
            print(f"\njob {left[0].folder.name}", flush=True)
        with nullcontext() if self.local else repeated(self.jobs.watch, 2.0):
            results = outcomes(self.launcher, self.kind, left)
        if SIGNALS.asked is not None:
            SIGNALS.stop()
        if self.local and not gc.get_freeze_count():
            gc.freeze()  # what the first job imported stays: looking through it takes 0.15 s a job
        found = {job.number: result for job, result in zip(left, results, strict=True)}
        for job in jobs:
            result = found.get(job.number)
            if isinstance(result, InUse):
                job.state = "running"  # in another process
                continue
            self.settle(job, result)
            if job.state == "failed":
                log_file = shown(job.folder / "run.log")
                print(f"job {job.number} failed: {job.error}; see {log_file}", flush=True)

    def settle(self, job: Job, result: Any = None) -> None:
        """Sets the state and the values of a job, from its result or from its folder."""
        job.state = "pruned" if job.status() == "pruned" else "finished"
        if isinstance(result, Exception) and not job.done():
            job.state, job.error = "failed", one_line(UserError(result)) or type(result).__name__
        elif job.state == "finished":
            values = result if isinstance(result, list | float) else optimised(job.folder, self.metrics)
            job.values = [values] if isinstance(values, float) else values

    def report(self) -> None:
        """Prints where the results are. Raises UserError: a job of a grid failed, or all jobs of a search."""
        if (best := self.jobs.best()) is not None:
            print(f"best job: {shown(best.folder)}")
        folder = shown(self.folder)
        print(f"sweep directory: {folder}\ncompare: imgcls compare runs={hydra_quoted(folder)}")
        failed = [job.folder.name for job in self.jobs.begun if job.state == "failed"]
        if failed and (self.settings.sampler is None or len(failed) == len(self.jobs.begun)):
            others = "" if len(failed) == len(self.jobs.begun) else ", the others are done"
            raise UserError(f"{len(failed)} of {self.jobs.total} jobs failed{others}: {', '.join(failed)}")
