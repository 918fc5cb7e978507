"""What all verbs share: Hydra composes the config, and a user's mistake ends in one line."""

import importlib
import inspect
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import hydra
from dotenv import dotenv_values
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from imgcls.config import check as config
from imgcls.config.command_line import PARTS, check_keys, check_place, take_unchosen
from imgcls.config.help import verb_help
from imgcls.config.paths import CONF, expanded, remove_empty
from imgcls.config.project import own_project
from imgcls.engine.signals import SIGNALS
from imgcls.errors import CodeFailed, UserError, one_line
from imgcls.processes import rank

log = logging.getLogger(__name__)
AT_START = {".hydra", "run.log", ".lock"}  # in a run directory before anything is done


def run_verb(name: str, module: str) -> list[tuple[Any, Path]]:
    """Lets Hydra compose the config of a verb, from its root in conf/, and calls `main(config, run_dir)` of
    the module (dotted). The annotation of its first parameter says the types of the root's keys. The module,
    and torch with it, is imported when the config is composed: `--help` needs neither. Returns what `main`
    did, with the run directory; nothing of the jobs of a sweep that other processes ran."""
    outcomes: list[tuple[Any, Path]] = []

    def task(cfg: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        try:
            plain = config.plain(cfg)
            if from_file:
                log.info("environment: .env sets %s", ", ".join(from_file))
                from_file.clear()  # said once in a sweep
            for line in take_unchosen(plain, hydra_config.overrides.task):
                log.log(logging.DEBUG if rank() else logging.WARNING, line)
            if name == "train":
                SIGNALS.install()  # before what takes long
                if hydra_config.mode == RunMode.RUN and plain.get("sweep") and plain["job"]["sweep"] is None:
                    log.warning("sweep: a file of the config sets one, and without -m this is one training")
            os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's notes; for the import of torch
            main = importlib.import_module(module).main
            kind = next(iter(inspect.signature(main, eval_str=True).parameters.values())).annotation
            run_dir = Path(hydra_config.runtime.output_dir)
            result = main(config.typed(plain, kind, ""), run_dir)
            outcomes.append((result, run_dir))
            return result
        except UserError as error:
            if hydra_config.mode == RunMode.MULTIRUN:
                raise  # the sweeper decides what it means; Hydra puts the traceback into run.log
            log.debug("%s", one_line(error), exc_info=True)  # into run.log alone
            if not isinstance(error, CodeFailed):
                BeforeRun.take_back(Path(hydra_config.runtime.output_dir))
            sys.exit(f"imgcls {name}: {one_line(error)}")
        finally:
            if name == "train":
                SIGNALS.restore()

    enter_project()
    from_file = read_environment()
    # What Hydra itself builds (launchers, sweepers, hooks) is named by files that the user trusts.
    try:
        hydra.main(str(CONF), name, execution_whitelist=UNSAFE_DISABLE_EXECUTION_CHECKS)(task)()
    except UserError:
        BeforeRun.take_back(BeforeRun.made)
        raise
    return outcomes


def show_help(name: str, words: list[str]) -> list[tuple[Any, Path]]:
    """Prints the help of a verb, its keys as these words of a command line compose them; runs nothing."""
    enter_project()
    print(verb_help(name, [word for word in words if "=" in word and not word.startswith("-")]))
    return []


def enter_project() -> None:
    """Makes the package and the config files of the user's project known, that of the working directory.
    Raises UserError: its `[tool.imgcls]` is wrong."""
    if project := own_project():
        project.enter()
    Plugins.instance().register(ProjectConf)


def read_environment() -> list[str]:
    """Sets the variables of the file .env of the working directory that are not set; returns their names."""
    found = dotenv_values(".env")
    new = {name: value for name, value in found.items() if value is not None and name not in os.environ}
    os.environ |= new
    return sorted(new)


@contextmanager
def logging_kept() -> Iterator[None]:
    """Gives the process its own logging back: Hydra's would go on to write into the run's log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


class ProjectConf(SearchPathPlugin):
    """Puts the conf folder of the user's project on Hydra's search path, before ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        project = own_project()
        if project and project.conf:
            main = SearchPathQuery("main", None)
            search_path.prepend("project", f"file://{project.conf}", main)


class BeforeRun(Callback):
    """Hydra's hook between config and run directory: what is wrong by then leaves no directory."""

    made: Path | None = None  # the run directory, where this process has made it

    @classmethod
    def take_back(cls, run_dir: Path | None) -> None:
        """Removes a directory of a run or sweep that this process has made, if nothing was done in it."""
        if run_dir is None or cls.made != run_dir or rank() or not run_dir.is_dir():
            return
        if {path.name for path in run_dir.iterdir()} - AT_START:
            return
        shutil.rmtree(run_dir, ignore_errors=True)
        remove_empty(run_dir.parent, run_dir.parent.parent)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().set_config(config)  # as Hydra does next: the directory is named by it
        self.begin(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from imgcls.sweeps.settings import OPTUNAS
        from imgcls.sweeps.sweeper import Sweep  # a sweep alone needs it

        Plugins.instance().register(Sweep)  # conf/hydra/sweeper/imgcls.yaml
        Plugins.instance().class_name_to_class[OPTUNAS] = Sweep  # where a file names it
        self.begin(config, "sweep")

    def begin(self, config: DictConfig, mode: str) -> None:
        """Checks the names, and makes the directory. Of what a hook raises, Hydra passes on an exit alone."""
        BeforeRun.made = None
        name = config.hydra.help.app_name
        try:
            self.check(config, mode)
        except UserError as error:
            sys.exit(f"{name}: {one_line(error)}")
        except OmegaConfBaseException as error:
            place = f"{error.full_key}: " if error.full_key else ""
            sys.exit(f"{name}: {place}{str(error).splitlines()[0]}")
        except Exception as error:  # there is no log file yet
            with NamedTemporaryFile("w", prefix="imgcls-", suffix=".log", delete=False) as file:
                traceback.print_exc(file=file)
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            sys.exit(f"{name}: {said} (traceback: {file.name})")

    @staticmethod
    def check(config: DictConfig, mode: str) -> None:
        folder = Path(expanded(config.hydra[mode].dir))
        check_keys(config)
        check_place(config.get("resume"), folder)
        if mode == "run":  # the parts of a sweep may be swept: each job looks at its own
            parts = {group: OmegaConf.to_container(config[group]) for group in PARTS if config.get(group)}
            take_unchosen(parts, config.hydra.overrides.task)
        given = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
        with read_write(config.hydra), read_write(config.hydra[mode]):
            config.hydra[mode].dir = str(folder)
        try:
            if mode == "run" or given:  # else imgcls.sweeps.sweeper may take another
                BeforeRun.made = None if folder.exists() else folder.absolute()
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            advice = f"the folder can't be made ({error.strerror}); give another, or make room or allow it"
            raise UserError(f"hydra.{mode}.dir={folder}: {advice}") from error
