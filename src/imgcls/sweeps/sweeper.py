"""A sweep: which jobs there are, what each is called, and what became of it. Hydra's launcher says where they run.

This is Hydra's sweeper for all kinds in conf/sweep. A grid is known from the start; a search (search.py) asks Optuna
for one batch of jobs after the other.
"""

import gc
import itertools
import json
import os
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from imgcls.config import check as configs
from imgcls.config.metrics import Metrics, direction
from imgcls.config.paths import hydra_quoted, shown
from imgcls.engine.signals import SIGNALS
from imgcls.errors import InUse, UserError, nearest, one_line
from imgcls.runs.best_epoch import optimised
from imgcls.runs.record import yaml_text
from imgcls.sweeps.jobs import Job, Jobs, job_name, short_hash
from imgcls.sweeps.launchers import keep_apart, outcomes, stoppable
from imgcls.sweeps.space import Settings, choices, overrides


class Sweep(Sweeper):
    """Runs the jobs of `imgcls train -m …`; a job that fails is recorded and stops nothing."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        node = OmegaConf.to_container(config.get("sweep") or OmegaConf.create(), resolve=True)
        assert isinstance(node, dict)
        self.settings: Settings = configs.typed(
            {k: v for k, v in node.items() if k in Settings.__annotations__}, Settings, "sweep"
        )
        self.where, self.overrides = overrides(self.hydra_context.config_loader, self.config, self.settings)
        self.place()
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        keep_apart(self.launcher)
        self.jobs = Jobs(self.folder.name, self.metrics[0], self.directions[0])

    def place(self) -> None:
        """Names the sweep and its directory: by time, or by what it is where it can go on later."""
        metric = self.config.optimized_metric
        metric = OmegaConf.to_container(metric) if OmegaConf.is_config(metric) else metric
        metric = configs.typed(metric, Metrics, "optimized_metric")
        self.metrics = [metric] if isinstance(metric, str) else metric
        self.directions = [direction(name) for name in self.metrics]
        self.fixed = [o.input_line or "" for o in self.overrides if not o.is_sweep_override()]
        self.swept = [o for o in self.overrides if o.is_sweep_override()]
        kinds = {"sampler": self.settings.sampler or {}, "pruner": self.settings.pruner or {}}
        self.identity = {
            "verb": self.config.hydra.job.config_name, "optimized_metric": self.metrics, "directions": self.directions,
            **{kind: node.get("_target_", "none") for kind, node in kinds.items()}, "fixed": self.fixed,
            "space": {o.get_key_element(): (o.input_line or "").partition("=")[2] for o in self.swept},
        }  # fmt: skip
        name = self.settings.name
        if name is None and self.settings.sampler is not None:
            chosen = self.config.hydra.runtime.choices
            name = f"{chosen['sweep']}-{chosen['data']}-{chosen['backbone']}-{short_hash(json.dumps(self.identity))}"
        given = any(o.startswith("hydra.sweep.dir=") for o in self.config.hydra.overrides.hydra)
        self.stays = given or name is not None  # the same command finds it again
        if name is not None and not given:
            with read_write(self.config.hydra.sweep):
                self.config.hydra.sweep.dir = str(Path(self.config.hydra.sweep.dir).with_name(name))
        self.folder = Path(self.config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        self.check()
        self.record()
        try:
            with stoppable(self.launcher, self.folder):
                if self.settings.sampler is None:
                    self.grid()
                else:
                    from imgcls.sweeps.optuna_search import search

                    search(self)
        except (SystemExit, KeyboardInterrupt) as ended:
            for job in self.jobs.begun:
                job.mark_stopped()
            where = "" if self.stays else f" and hydra.sweep.dir={hydra_quoted(shown(self.folder))}"
            print(f"sweep {self.folder.name}: stopped; go on with the same command{where}", flush=True)
            raise ended if isinstance(ended, SystemExit) else SystemExit(130) from ended
        finally:
            gc.unfreeze()  # or extension modules complain at the end that they leak
        self.report()

    def check(self) -> None:
        """Composes jobs that have each value of each list once, and looks for the metrics, before the first job."""
        values = {o.get_key_element(): choices(o) for o in self.swept}
        if self.settings.sampler is not None and not values:
            raise UserError(
                "sweep: there is nothing to search; give a space, such as optimizer.lr=interval(0.01,1)"
            )
        known, mistake = set[str](), UserError()
        for i in range(max(map(len, values.values()), default=1)):
            overrides = (
                self.where + self.fixed + [f"{key}={some[i % len(some)]}" for key, some in values.items()]
            )
            config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            try:
                known = known or logged_names(config)
            except UserError as error:  # of this job; others may do
                mistake = error
        if not known:
            raise mistake
        for name in self.metrics:
            if name not in known:
                raise UserError(f"optimized_metric={name}: no such metric is logged; {nearest(name, known)}")

    def record(self) -> None:
        """Writes sweep.yaml, which says what is run. A folder of another sweep is refused."""
        path = self.folder / "sweep.yaml"
        found = yaml.safe_load(path.read_text()) if path.is_file() else self.identity
        for key, value in self.identity.items():
            if found.get(key) != value:
                raise UserError(
                    f"{shown(self.folder)} holds another sweep: its {key} is {found.get(key)}, not {value}; give another sweep.name"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        words = {"name": self.folder.name, "command": shlex.join(sys.orig_argv), **self.identity}
        limit = {"n_trials": self.settings.n_trials} if self.settings.sampler else {}
        path.write_text(yaml_text(words | limit))

    def grid(self) -> None:
        """Runs a job for each combination, but those that a former start of this name has finished."""
        for override in self.swept:
            if not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: a grid takes lists; an interval is searched, by sweep=optuna"
                )
        keys = [o.get_key_element() for o in self.swept]
        combinations = itertools.product(*map(choices, self.swept))
        jobs = [
            self.job(n, [f"{k}={v}" for k, v in zip(keys, c, strict=True)])
            for n, c in enumerate(combinations)
        ]
        self.jobs.total = len(jobs)
        self.jobs.begun = [job for job in jobs if job.done()]
        for job in self.jobs.begun:
            self.settle(job)
        self.jobs.line()
        self.run([job for job in jobs if job.state == "running"])
        print(self.jobs.line(), flush=True)

    def run(self, left: list[Job]) -> None:
        """Runs jobs. One that another process runs is left to it, and run here only where that doesn't finish it."""
        at_once, told = self.at_once() if self.local or self.settings.n_jobs else len(left), False
        while left:
            SIGNALS.install()  # a job that ran in this process gave them back
            if SIGNALS.asked is not None:
                SIGNALS.stop()
            free = [job for job in left if job.done() or not job.in_use()][:at_once]
            if free:
                self.launch(free)
            elif not told:
                told = True
                print(f"{self.jobs.line()}; waits for jobs that another process runs", flush=True)
            left = [job for job in left if job.state == "running"]
            if free and left:
                print(self.jobs.line(), flush=True)
            time.sleep(0 if free else 2)

    @property
    def local(self) -> bool:
        return isinstance(self.launcher, BasicLauncher)

    def at_once(self) -> int:
        """Returns how many jobs are given to the launcher at a time."""
        number: int = self.settings.n_jobs or OmegaConf.select(self.config, "hydra.launcher.n_jobs") or 1
        return number if number > 0 else os.cpu_count() or 1

    def job(self, number: int, values: list[str], more: list[str] | None = None) -> Job:
        """Returns a job, in a folder named by what it overrides.

        Args:
            values: what is swept, as it is in this job.
            more: overrides that the name does not tell.
        """
        excluded = self.config.hydra.job.config.override_dirname.exclude_keys
        name = job_name(values + self.fixed, set(excluded))
        job = Job(
            number, [*self.where, *self.fixed, *values, *(more or [])], self.folder / f"{number}_{name}"
        )
        job.overrides += [
            f"job.sweep={hydra_quoted(self.folder.name)}", f"job.number={number}",
            f"hydra.sweep.dir={hydra_quoted(str(self.folder))}", f"hydra.sweep.subdir='{job.folder.name}'",
            f"hydra.job.override_dirname='{name}'",
        ]  # fmt: skip
        return job

    def launch(self, jobs: list[Job]) -> None:
        """Runs jobs where the launcher says, but those that are done, and settles what became of them."""
        self.jobs.begun += [job for job in jobs if job not in self.jobs.begun]
        left = [job for job in jobs if not job.done()]
        if left and self.local:
            print(f"\njob {left[0].folder.name}", flush=True)
        with nullcontext() if self.local else self.jobs.watched():
            found = dict(zip([job.number for job in left], outcomes(self.launcher, left), strict=True))
        if SIGNALS.asked is not None:
            SIGNALS.stop()
        if self.local and not gc.get_freeze_count():
            gc.freeze()  # what the first job imported stays: looking through it takes 0.15 s a job
        for job in jobs:
            result = found.get(job.number)
            result = result._return_value if isinstance(result, JobReturn) else result
            if isinstance(result, InUse):
                job.state = "running"  # in another process
                continue
            self.settle(job, result)
            if job.state == "failed":
                print(
                    f"job {job.number} failed: {job.error}; see {shown(job.folder / 'run.log')}", flush=True
                )

    def settle(self, job: Job, result: Any = None) -> None:
        """Finds out what became of a job, from what it returned or left behind."""
        job.state = "pruned" if job.status() == "pruned" else "finished"
        if isinstance(result, Exception) and not job.done():
            job.state, job.error = "failed", one_line(UserError(result)) or type(result).__name__
        elif job.state == "finished":
            values = result if isinstance(result, list | float) else optimised(job.folder, self.metrics)
            job.values = [values] if isinstance(values, float) else values

    def report(self) -> None:
        """Says where things are. A failed job makes a grid fail; a search goes round it."""
        if (best := self.jobs.best()) is not None:
            print(f"best job: {shown(best.folder)}")
        print(
            f"sweep directory: {shown(self.folder)}\ncompare: imgcls compare runs={hydra_quoted(shown(self.folder))}"
        )
        failed = self.jobs.failed()
        if failed and (self.settings.sampler is None or len(failed) == len(self.jobs.begun)):
            others = "" if len(failed) == len(self.jobs.begun) else ", the others are done"
            raise UserError(f"{len(failed)} of {self.jobs.total} jobs failed{others}: {', '.join(failed)}")


def logged_names(config: DictConfig) -> set[str]:
    """Returns the metrics that a training with this config logs."""
    from imgcls.tasks.metrics import metric_names

    node: Any = OmegaConf.to_container(config.data, resolve=True)
    classes = configs.build(node, "data").spec.num_classes
    return {
        "train/loss",
        "train/top1",
        "images_per_second",
        "val/loss",
        *(f"val/{n}" for n in metric_names(classes)),
    }
