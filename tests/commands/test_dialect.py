"""YAML of another Lightning-Hydra project, in Hydra's own words, trains here as it is."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import SHORT, TINY, assert_same_run
from torch.optim.lr_scheduler import CosineAnnealingLR

from imgcls.engine.signals import STOPPED
from imgcls.runs.checkpoints import load_content
from imgcls.tasks.task import load_checkpoint

THEIRS = {
    "optimizer/adam": "_target_: torch.optim.Adam\n_partial_: true\nlr: 0.002\nbetas: [0.8, 0.9]\n",
    "scheduler/annealing": """
        _target_: torch.optim.lr_scheduler.CosineAnnealingLR
        _partial_: true
        T_max: 10
    """,
    "callbacks/timer": """
        timer:
          _target_: lightning.pytorch.callbacks.Timer
          duration:
            _target_: datetime.timedelta
            hours: 1
          interval: epoch
    """,
    "augment/theirs": """
        image:
          theirs:
            _target_: torchvision.transforms.v2.Compose
            transforms:
              - _target_: torchvision.transforms.v2.RandomHorizontalFlip
                p: 0.25
              - _target_: torchvision.transforms.v2.RandomApply
                p: 0.5
                transforms:
                  - {_target_: torchvision.transforms.v2.ColorJitter, _args_: [0.4, 0.4]}
    """,
    "metrics/theirs": """
        mine:
          _target_: torchmetrics.MetricCollection
          metrics:
            - {_target_: torchmetrics.classification.MulticlassF1Score, average: macro}
            - {_target_: torchmetrics.classification.MulticlassSpecificity, average: macro}
          prefix: their_
    """,
    "backbone/theirs": "_target_: torchvision.models.resnet18\nzero_init_residual: true\n",
}


@pytest.fixture
def theirs(tmp_path: Path) -> list[str]:
    """The files of the other project, and the words of the command that choose them."""
    for name, text in THEIRS.items():
        path = tmp_path / "theirs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines) + "\n")
    chosen = ["optimizer=adam", "scheduler=annealing", "callbacks=timer", "metrics=theirs"]
    return ["--config-dir=theirs", *chosen, "augment=theirs", "backbone=theirs", "data.channels=3"]


def table(run: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(run, "metrics.csv").read_text().splitlines()))


def test_yaml_of_another_project_trains(here: Callable[..., None], theirs: list[str]) -> None:
    watched = "optimized_metric=val/their_MulticlassF1Score"
    here("train", *theirs, *TINY, watched, "hydra.run.dir=run", "test=true")
    rows = table("run")
    assert len(rows) == 2
    for name in ("their_MulticlassF1Score", "their_MulticlassSpecificity"):
        assert all(0 <= float(row[f"val/{name}"]) <= 1 for row in rows)
        assert f"test/{name}" in Path("run/test/metrics.json").read_text()
    last = load_content(Path("run/checkpoints/last.ckpt"))
    assert last["optimizer_states"][0]["param_groups"][0]["betas"] == (0.8, 0.9)
    expected = CosineAnnealingLR(torch.optim.Adam([torch.zeros(1)], lr=0.002), T_max=10)
    rates = [0.002]
    for _ in range(2):
        expected.optimizer.step()
        expected.step()
        rates.append(float(expected.get_last_lr()[0]))
    assert [float(row["lr"]) for row in rows] == pytest.approx(rates[:2])
    assert last["lr_schedulers"][0]["_last_lr"] == pytest.approx([rates[2]])
    task, _ = load_checkpoint(Path("run/checkpoints/best.ckpt"), trust=["torchvision"])
    assert {"their_MulticlassF1Score", "top1"} <= set(task.val_metrics.better())


SCHEDULES = {
    "by epoch": ["scheduler=annealing", "+scheduler.eta_min=1e-4"],
    "by step, in Lightning's dict": ["scheduler=dict"],
    "on a plateau": ["scheduler=plain_plateau"],
}
DICT = """
scheduler:
  _target_: torch.optim.lr_scheduler.OneCycleLR
  max_lr: 0.01
  total_steps: 69
interval: step
"""
PLATEAU = "_target_: torch.optim.lr_scheduler.ReduceLROnPlateau\n_partial_: true\npatience: 0\n"


@pytest.mark.parametrize("case", SCHEDULES)
def test_torchs_schedules_go_on(case: str, train: Callable[..., Any], theirs: list[str]) -> None:
    Path("theirs/scheduler/dict.yaml").write_text(DICT)
    Path("theirs/scheduler/plain_plateau.yaml").write_text(PLATEAU)
    command = [*SHORT, theirs[0], *SCHEDULES[case], "backbone.width=4", "test=false"]
    assert train(*command, "hydra.run.dir=whole") is None
    assert train(*command, "hydra.run.dir=cut", stop=25) == STOPPED
    assert train("resume=cut") is None
    assert_same_run(Path("whole"), Path("cut"))
    if case != "on a plateau":
        assert len({row["lr"] for row in table("whole")}) == 3


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("callbacks=timer callbacks.timer.duration.hurs=1", "callbacks.timer.duration"),
        (
            "augment=theirs augment.image.theirs.transforms.0.p=often",
            "augment.image.theirs.transforms.0.p=often: input",
        ),
        ("backbone=theirs", "torchvision.models.resnet18 takes no in_channels: set data.channels=3"),
        (
            "backbone=theirs backbone.pretrained=true",
            "resnet18 has no such weights; give a file of weights as backbone.weights=FILE",
        ),
        ("~backbone", "backbone: nothing is chosen; write backbone=…"),
        ("backbone.pretrained=true", "simple_cnn has no such weights"),
        ("scheduler=annealing +scheduler.tmax=1", "scheduler.tmax: torch.optim.lr_scheduler."),
        ("scheduler=none", "scheduler._target_=torch.nn.Identity: expected a scheduler of torch"),
        ("scheduler=often", "scheduler.interval=often: input should be 'epoch' or 'step'"),
        ("scheduler=wrong_way", "scheduler.mode=max: val/loss is better the other way; set mode=min"),
        ("loss=torch", "loss._target_ must be given: loss._target_=…"),
    ],
)
def test_one_line(command: str, expected: str, said: Callable[..., str], theirs: list[str]) -> None:
    more = {
        "none": "_target_: torch.nn.Identity\n",
        "often": DICT.replace("step\n", "often\n").lstrip(),
        "wrong_way": PLATEAU + "mode: max\n",
    }
    for name, text in more.items():
        Path(f"theirs/scheduler/{name}.yaml").write_text(text)
    assert expected in said("train", theirs[0], *command.split(), *TINY)


def test_a_loss_of_torch(here: Callable[..., None]) -> None:
    loss = "loss._target_=torch.nn.MultiMarginLoss"
    here("train", "loss=torch", loss, "+loss.margin=0.5", *TINY, "backbone.width=4", "hydra.run.dir=run")
    assert float(table("run")[0]["train/loss"]) < 1


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("CyclicLR\nbase_lr: 0.1\nmax_lr: 0.2\nmode: triangle\n", "mode is invalid"),
        ("MultiplicativeLR\nlr_lambda: [1, 2, 3]\n", "Expected 2 lr_lambdas, but got 3"),
        ("OneCycleLR\nmax_lr: 0.1\n", "You must define either total_steps OR"),
    ],
)
def test_what_a_schedule_of_torch_refuses_is_said_at_the_start(
    call: str, expected: str, said: Callable[..., str], theirs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgcls.commands.train.fit", lambda *_: pytest.fail("it was trained"))
    Path("theirs/scheduler/wrong.yaml").write_text(f"_target_: torch.optim.lr_scheduler.{call}")
    message = said("train", theirs[0], "scheduler=wrong", *TINY)
    assert message.startswith("imgcls train: scheduler") and expected in message
    assert not list(Path().rglob("metrics.csv"))
