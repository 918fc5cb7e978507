"""The listings of docs/extension.md run as they stand there."""

import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import ROOT

import imgcls

TEXT = (ROOT / "docs" / "extension.md").read_text()
LISTINGS = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)).splitlines()
SHORT = ("trainer.max_epochs=2", "trainer.limit_train_batches=2", "logger=csv", "trainer.accelerator=cpu")


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `mine`, importable as from the working directory."""
    for name, code in LISTINGS:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(code)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_listings_are_found() -> None:
    assert len(LISTINGS) == 11 and len(COMMANDS) >= 10
    assert all(len(code.splitlines()) <= 80 for _, code in LISTINGS)


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.removeprefix("imgcls train ")[:60])
def test_commands(line: str, here: Callable[..., None]) -> None:
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("imgcls", "train")
    several = "-m" in words
    here(verb, *words, *SHORT, "hydra.sweep.dir=run" if several else "hydra.run.dir=run")
    found = list(Path("run").rglob("metrics.csv"))
    assert len(found) == (2 if several else 1)
    optimised = next((word.partition("=")[2] for word in words if word.startswith("optimized_metric=")), None)
    assert optimised is None or optimised in found[0].read_text().splitlines()[0]


def test_a_task_of_ones_own_is_evaluated(here: Callable[..., None], said: Callable[..., str]) -> None:
    line = next(line for line in COMMANDS if "TwoViews" in line)
    here(*shlex.split(line)[1:], *SHORT, "hydra.run.dir=run")
    assert "mine is not trusted and was not imported; add trust=[mine]" in said("eval", "checkpoint=run")
    here("eval", "checkpoint=run", "trust=[mine]", "hydra.run.dir=tested")
    assert Path("tested/metrics.json").read_text() == Path("run/test/metrics.json").read_text()


def test_a_checkpoint_needs_no_augmentation(here: Callable[..., None]) -> None:
    line = next(line for line in COMMANDS if "augment=mine" in line)
    here(*shlex.split(line)[1:], *SHORT, "hydra.run.dir=run")
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert float(state["augment.entries.0.call.done"]) == 4  # steps
    shutil.rmtree("mine")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    here("eval", "checkpoint=run", "hydra.run.dir=tested")
    assert Path("tested/metrics.json").read_text() == Path("run/test/metrics.json").read_text()
    assert imgcls.load("run").predict(np.zeros((8, 8), np.uint8)).labels
    here("export", "checkpoint=run", "out=exported.pt2", "format=torch_export")
    assert Path("exported.pt2").is_file()


def test_the_script() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        runpy.run_path("mine/script.py")
