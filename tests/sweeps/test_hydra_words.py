"""Hydra's own words for sweeps, in files and on the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.runs import TINY, jobs

from imgcls.config.multirun import as_text

# As in lightning-hydra-template, but for the names of keys, and fewer and shorter trials
FILE = """# @package _global_

defaults:
  - override /hydra/sweeper: optuna

optimized_metric: val/top1

hydra:
  mode: MULTIRUN
  sweeper:
    _target_: hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper
    storage: null
    study_name: null
    n_jobs: 1
    direction: maximize
    n_trials: 2
    sampler:
      _target_: optuna.samplers.TPESampler
      seed: 1234
      n_startup_trials: 10
    params:
      optimizer.lr: interval(0.0001, 0.1)
      data.batch_size: choice(16, 32)
      backbone.width: choice(4, 8)
"""


def sweep() -> tuple[Path, dict[str, object]]:
    (path,) = Path("runs/sweeps").glob("*/sweep.yaml")
    return path.parent, yaml.safe_load(path.read_text())


@pytest.mark.parametrize(("group", "name"), [("experiment", "optuna"), ("sweep", "mine")])
def test_a_file_of_another_template(here: Callable[..., None], group: str, name: str) -> None:
    Path("conf", group).mkdir(parents=True)
    Path("conf", group, "mine.yaml").write_text(FILE)
    here("train", "--config-dir=conf", f"{group}=mine", *TINY)
    folder, found = sweep()
    assert folder.name.startswith(f"{name}-digits-simple_cnn-") and found["n_trials"] == 2
    assert found["space"] == {
        "optimizer.lr": "interval(0.0001, 0.1)",
        "data.batch_size": "choice(16, 32)",
        "backbone.width": "choice(4, 8)",
    }
    assert found["sampler"] == "optuna.samplers.TPESampler" and found["directions"] == ["max"]
    assert len(jobs(folder)) == 2


def test_a_grid_of_the_command_line(here: Callable[..., None]) -> None:
    here("train", "-m", *TINY[:-1], "trainer.max_epochs=1", "test=false", "hydra.sweeper.params.seed=1,2")
    folder, found = sweep()
    assert found["space"] == {"seed": "1,2"} and len(jobs(folder)) == 2


def test_a_search_of_the_command_line(here: Callable[..., None]) -> None:
    given = ("hydra.sweeper.params.optimizer.lr=interval(1e-4,1e-1)", "hydra.sweeper.n_trials=1")
    here("train", "-m", *TINY, "hydra/sweeper=optuna", *given, "hydra.sweeper.study_name=mine")
    folder, found = sweep()
    assert found["space"] == {"optimizer.lr": "interval(1e-4,1e-1)"} and folder.name == "mine"


def test_an_inherited_key_is_taken_out(here: Callable[..., None]) -> None:
    Path("conf/sweep").mkdir(parents=True)
    text = "defaults: [random]\nparams: {loss.label_smoothing: null, data.batch_size: null}\n"
    Path("conf/sweep/mine.yaml").write_text(text)
    command = ("train", "-m", "--config-dir=conf", "sweep=mine", "sweep.n_trials=1", *TINY)
    here(*command, "sweep.params.optimizer.weight_decay=null", "sweep.params.seed=3")
    _, found = sweep()
    assert found["space"] == {"optimizer.lr": "tag(log, interval(1e-4, 1e-1))"}
    assert "seed=3" in found["fixed"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("hydra.sweeper.storage=sqlite:///x.db",),
            "hydra.sweeper.storage=sqlite:///x.db: only null is taken",
        ),
        (
            ("+hydra.sweeper.trials=3",),
            "hydra.sweeper.trials: there is no such key; did you mean 'n_trials'?",
        ),
        (("hydra.sweeper.direction=up",), "hydra.sweeper.direction=up: expected minimize or maximize"),
        (("hydra.sweeper.direction=minimize",), "hydra.sweeper.direction: optimized_metric=val/top1: it is"),
        (
            ("hydra.sweeper.direction=minimize", "optimized_mode=max"),
            "hydra.sweeper.direction=minimize: optimized_mode=max is the other one",
        ),
        (("hydra.sweep.subdir=x",), "hydra.sweep.subdir=x: a job's folder is named by its number"),
        (
            ("sweep.name=mine", "hydra.sweep.dir=other"),
            "sweep.name=mine: hydra.sweep.dir=other names the sweep, too; give one of the two",
        ),
        (("hydra.sweeper.study_name=a/b",), "sweep.name=a/b: expected a folder's name"),
    ],
)
def test_words_without_effect_are_refused(
    said: Callable[..., str], arguments: tuple[str, ...], words: str
) -> None:
    assert said("train", "-m", *TINY, "seed=0,1", *arguments).startswith(f"imgcls train: {words}")
    assert not list(Path().rglob("*/"))


def test_a_space_is_text() -> None:
    assert as_text(["sweep.params.optimizer.lr=interval(0,1)", "seed=1,2"]) == [
        r"++sweep.params.optimizer\.lr='interval(0,1)'",
        "seed=1,2",
    ]
    assert as_text(["hydra.sweeper.params.data.root=~/a b,/c"])[0].endswith(r"='\'~/a b\',/c'")
