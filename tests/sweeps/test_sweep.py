"""imgcls train -m: grids and searches, as users run them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.command import ROOT, imgcls
from support.runs import TINY, jobs, outcome, same

from imgcls.data.digits import Digits
from imgcls.data.loading.cuts import stratified_fold
from imgcls.engine.ranks import take_gpu
from imgcls.sweeps.jobs import LONGEST, Job, Jobs, job_name

SPACE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def study(folder: Path) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return optuna.load_study(
        study_name=None, storage=JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    )


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study(folder).trials]


def sweeps() -> list[Path]:
    return sorted(path.parent for path in Path("runs/sweeps").glob("*/sweep.yaml"))


def test_a_job_of_a_grid_is_the_job_alone(
    here: Callable[..., None], said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The last of a grid, after another network and two jobs that failed."""
    here("train", *TINY, "backbone=resnet20", "seed=3", "optimizer.lr=0.01", "hydra.run.dir=alone")
    command = ("train", "-m", *TINY, "backbone=simple_cnn,resnet20", "optimizer.lr=-1,0.01", "seed=3")
    failed = [f"{n}_backbone={net},optimizer.lr=-1" for n, net in ((0, "simple_cnn"), (2, "resnet20"))]
    with pytest.raises(SystemExit) as ended:
        here(*command, "sweep.name=mine")
    assert str(ended.value.code) == (
        f"imgcls train: 2 of 4 jobs failed, the others are done: {', '.join(failed)}"
    )
    folder = Path("runs/sweeps/mine")
    assert sweeps() == [folder] and [path.name for path in jobs(folder)][::2] == failed
    assert same(Path("alone"), jobs(folder)[3]) and not same(Path("alone"), jobs(folder)[1])
    shown = capsys.readouterr().out
    assert (
        "job 2 failed: optimizer=torch.optim.AdamW: Invalid learning rate: -1.0; "
        "see runs/sweeps/mine/2_" in shown
    )
    assert "sweep mine: 2 of 4 done, 2 failed; best val/top1 0." in shown
    assert "compare: imgcls compare runs=runs/sweeps/mine\n" in shown
    written = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert written["space"] == {"backbone": "simple_cnn,resnet20", "optimizer.lr": "-1,0.01"}
    assert "seed=3" in written["fixed"] and written["name"] == "mine" and written["command"]

    before = (jobs(folder)[1] / "metrics.csv").stat().st_mtime_ns
    with pytest.raises(SystemExit):  # once more: what is done is not done again
        here(*command, "sweep=grid", "sweep.name=mine")
    assert "sweep mine: 2 of 4 done, 1 failed; best" in capsys.readouterr().out
    refused = said(*command[:-1], "seed=4", "sweep=grid", "sweep.name=mine")
    assert refused.startswith("imgcls train: runs/sweeps/mine holds another sweep: its fixed is [")
    refused = said(*command[:-1], "seed=3", "data.batch_size=16,32", "sweep.name=mine")
    assert "its keys are backbone, optimizer.lr, not backbone, optimizer.lr, data.batch_size; give" in refused
    assert (jobs(folder)[1] / "metrics.csv").stat().st_mtime_ns == before


def test_a_grid_grows(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """What is done keeps its number and its folder, in whatever order the values and overrides are given."""
    one = (*TINY[:2], "trainer.max_epochs=1", "logger=csv", "test=false")
    grid = ("train", "-m", "sweep.name=mine")
    here(*grid, *one, "seed=0,1", "data.batch_size=32,64")
    folder = Path("runs/sweeps/mine")
    before = {path: (path / "status.json").stat().st_mtime_ns for path in jobs(folder)}
    names = [path.name for path in before]
    assert names == [f"{n}_seed={n // 2},data.batch_size={(32, 64)[n % 2]}" for n in range(4)]
    capsys.readouterr()
    here(*grid, *reversed(one), "data.batch_size=64,32", "seed=2,0,1")
    assert "6 of 6 done" in capsys.readouterr().out
    assert [path.name for path in jobs(folder)] == [
        *names,
        "4_seed=2,data.batch_size=64",
        "5_seed=2,data.batch_size=32",
    ]
    assert all((path / "status.json").stat().st_mtime_ns == then for path, then in before.items())
    here(*grid, *one, "seed=range(1,3)", "data.batch_size=32,64")  # a part of it
    assert "4 of 4 done" in capsys.readouterr().out and len(jobs(folder)) == 6
    written = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert written["space"]["seed"] == "2,0,1" and written["earlier"][0]["seed"] == "0,1"


def test_the_first_mistake_ends_the_sweep(
    said: Callable[..., str], here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that only the network finds. Nothing is left of the sweep."""
    wrong = ("backbone=resnet20", "backbone.depth=21")
    for more in (("seed=0,1,2",), ("sweep=random", "sweep.n_trials=4"), ("seed=0,1", "hydra.sweep.dir=mine")):
        message = said("train", "-m", *TINY, *wrong, *more)
        assert message.startswith("imgcls train: backbone") and "the other jobs were not begun" in message
        assert not [*Path().glob("runs*"), *Path().glob("mine*")]
    assert "failed" not in capsys.readouterr().out


def test_a_thousand_jobs_are_checked_in_seconds(said: Callable[..., str]) -> None:
    begun = time.monotonic()
    found = said("train", "-m", *TINY, "backbone=simple_cnn,resnet20", "seed=range(498,-2,-1)")
    assert found == "imgcls train: seed=-1: input should be greater than or equal to 0"
    assert time.monotonic() - begun < 20  # 3 s alone


def test_a_search_goes_on_where_it_was_stopped(
    here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its second trial, then with more trials; against a search that was never stopped."""
    command = ("train", "-m", *TINY, "sweep=optuna", SPACE, "data.batch_size=16,32")
    here(*command, "sweep.n_trials=3", "sweep.name=whole")
    from imgcls.callbacks.step_curves import StepCurves

    def stop(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1 and Path(trainer.default_root_dir).name.startswith("1_"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises((SystemExit, KeyboardInterrupt)):
        patched.setattr(StepCurves, "on_train_batch_start", stop, raising=False)
        here(*command, "sweep.n_trials=2")
    whole, stopped = Path("runs/sweeps/whole"), next(path for path in sweeps() if path.name != "whole")
    assert stopped.name.startswith("optuna-digits-simple_cnn-") and states(stopped) == ["COMPLETE", "RUNNING"]
    here(*command, "sweep.n_trials=3")  # the number is of all, and the sweep is the same
    assert [path.name for path in jobs(stopped)] == [path.name for path in jobs(whole)]
    assert states(stopped) == states(whole) == ["COMPLETE"] * 3
    one, other = study(whole).trials, study(stopped).trials
    assert [t.params for t in one] == [t.params for t in other] and [t.values for t in one] == [
        t.values for t in other
    ]
    assert [t.user_attrs.get("killed") for t in other] == [None, 1, None]
    assert same(jobs(whole)[1], jobs(stopped)[1])


def test_trials_that_fail_or_are_hopeless(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    here(
        "train", "-m", *TINY, "sweep=optuna_pruned", "sweep.n_trials=9", "sweep.pruner.n_startup_trials=1",
        "sweep.pruner.n_warmup_steps=0",
        "sweep.sampler={_target_: optuna.samplers.BruteForceSampler,seed: 1}",
        "optimizer.lr=1e-9,-1,0.003", "trainer.max_epochs=3", "trainer.limit_train_batches=8",
    )  # fmt: skip
    (folder,) = sweeps()
    found = {trial.params["optimizer.lr"]: trial for trial in study(folder).trials}
    assert {value: trial.state.name for value, trial in found.items()} == {
        "0.003": "COMPLETE",
        "-1": "FAIL",
        "1e-09": "PRUNED",
    }  # and there are no other values to draw
    assert (
        found["-1"].user_attrs["error"].startswith("optimizer=torch.optim.AdamW: Invalid learning rate: -1")
    )
    pruned = found["1e-09"]
    assert len(pruned.intermediate_values) < 3
    left = jobs(folder)[pruned.number]
    assert yaml.safe_load((left / "status.json").read_text())["status"] == "pruned"
    why = f"TrialPruned: the other trials of the sweep were better by epoch {len(pruned.intermediate_values)}"
    assert yaml.safe_load((left / "status.json").read_text())["error"] == why
    assert len(outcome(left)[1]) == len(pruned.intermediate_values)  # a row an epoch, and the last is whole
    assert "1 pruned, 1 failed; best val/top1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("sweep=optuna", "optimized_metric=val/top"),
            "optimized_metric=val/top: no such metric is logged; did you mean",
        ),
        (
            ("sweep=optuna", "optimized_metric=[val/top1,loss]"),
            "optimized_metric=loss: no such metric is logged",
        ),
        (("sweep=optuna", "sweep.n_trials=0"), "sweep.n_trials=0: expected the number of trials in all"),
        (("sweep=optuna", "sweep.n_trials=many"), "sweep.n_trials=many: "),
        (
            ("sweep=optuna", "sweep.sampler._target_=optuna.samplers.TPESampller"),
            "sweep.sampler._target_=optuna.samplers.TPE",
        ),
        (
            ("sweep=optuna_pruned", "optimized_metric=[val/top1,val/loss]"),
            "sweep.pruner: Optuna prunes by one metric",
        ),
        (("sweep=optuna", "optimizer.lr=tag(log,interval(0,1))"), "optimizer.lr=tag(log,interval(0,1)): "),
        (
            ("optimizer.lr=interval(0,1)",),
            "optimizer.lr=interval(0,1): a grid takes lists; an interval is searched, by",
        ),
        (("backbone=simple_cnn,resnet21",), "backbone=resnet21: there is no such choice; did you mean"),
        (
            ("data.folds=5", "data.fold=5,6"),
            "data.folds=5 data.fold=6: expected 2 folds or more, and a fold from 0",
        ),
        (
            ("data.batch_size=16,-1",),
            "data.batch_size=-1: input should be greater than or equal to 1",
        ),
        (("backbone=simple_cnn,resnet20", "backbone.width=4,8"), "backbone.width"),
        (("optimizer.lr=0.1,0.2,fast",), "optimizer.lr=fast: expected a number"),
        (("optimizer.lr=glob(*)",), "optimizer.lr=glob(*): there is no value in it; expected one or more"),
        (("sweep=seeds", "sweep.n=0"), "seed=range(0): there is no value in it; expected one or more"),
        (("sweep=seeds", "sweep.name=../../x"), "sweep.name=../../x: expected a folder's name: no / in it"),
        (("sweep=optuna", "sweep.n_trials=1,2"), "sweep.n_trials=1,2: one value holds for the whole sweep"),
        (("seed=1", "launcher=joblib,local"), "launcher=joblib,local: one value holds for the whole sweep"),
        (("seed=0,1", "optimized_metric=[]"), "optimized_metric=[]: value should have at least 1 item"),
        (("sweep=bayes",), "sweep=bayes: there is no such choice"),
    ],
)  # fmt: skip
def test_mistakes_are_said_before_the_first_job(
    said: Callable[..., str], arguments: tuple[str, ...], words: str
) -> None:
    assert said("train", "-m", *TINY, *arguments).startswith(f"imgcls train: {words}")
    assert not Path("runs").exists()


@pytest.mark.parametrize("given", ["sweep=optuna", "sweep.name=mine"])
def test_a_sweep_needs_multirun(said: Callable[..., str], given: str) -> None:
    command = f"imgcls train -m trainer=cpu {given} 'optimizer.lr=interval(0.1,1)'"
    message = said("train", "trainer=cpu", given, "optimizer.lr=interval(0.1,1)")
    assert (
        message == f"imgcls train: {given}: a sweep needs -m; write {command}" and not Path("runs").exists()
    )


def test_no_metric_is_refused_in_a_single_run(said: Callable[..., str]) -> None:
    assert said("train", *TINY, "optimized_metric=[]").startswith(
        "imgcls train: optimized_metric=[]: value should"
    )


def test_a_space_is_changed_by_its_keys(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """sweep.params.KEY changes a parameter of the preset, or adds one; keys that the config lacks go."""
    command = ("train", "-m", *TINY, "sweep=random", "sweep.n_trials=1", "trainer.max_epochs=1")
    more = ("sweep.params.optimizer.lr=interval(0.01,0.02)", "sweep.params.backbone.dropout=0.1,0.2")
    here(*command, "~loss.label_smoothing", *more, "sweep.name=changed")
    here(*command, "loss=binary", "sweep.name=binary")
    assert "sweep.params.loss.label_smoothing is left out of the search" in capsys.readouterr().out
    (trial,) = study(Path("runs/sweeps/changed")).trials
    assert set(trial.params) == {
        "optimizer.lr",
        "optimizer.weight_decay",
        "data.batch_size",
        "backbone.dropout",
    }
    assert 0.01 <= trial.params["optimizer.lr"] <= 0.02 and trial.params["backbone.dropout"] in ("0.1", "0.2")
    assert states(Path("runs/sweeps/binary")) == ["COMPLETE"]


def test_conditions(here: Callable[..., None], said: Callable[..., str]) -> None:
    """Each optimizer has ranges of its own; a worker that was killed while it drew is taken over."""
    command = ("train", "-m", *TINY[:2], "trainer.max_epochs=1", "logger=csv", "test=false")
    more = ("sweep=optuna_optimizers", "sweep.n_trials=6", "sweep.name=which", "sweep.sampler.seed=1")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = Path("runs/sweeps/which")
    folder.mkdir(parents=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    optuna.create_study(storage=storage, study_name="which", direction="maximize").ask()
    here(*command, *more)
    found = set()
    for trial, path in zip(study(folder).trials, jobs(folder), strict=True):
        config = yaml.safe_load((path / "config.yaml").read_text())["optimizer"]
        name = trial.params["optimizer"]
        own = {f"optimizer.lr [optimizer={name}]"} | (
            {"optimizer.momentum [optimizer=sgd]"} if name == "sgd" else set()
        )
        assert own <= trial.params.keys() and "optimizer.lr" not in trial.params
        assert config["lr"] == trial.params[f"optimizer.lr [optimizer={name}]"]
        assert config.get("momentum") == trial.params.get("optimizer.momentum [optimizer=sgd]")
        found.add(name)
    assert found == {"sgd", "adamw"} and states(folder) == ["COMPLETE"] * 6
    for text, words in (
        ("{optimizer=lion: {optimizer.lr: 0.1}}", "sweep.when: optimizer=lion: choose one of: adamw, sgd"),
        ("{loss=focal: {loss.gamma: 1}}", "sweep.when: loss=focal: loss is not varied; "),
        ("{optimizer=sgd: {optimizer.beta: 1}}", "optimizer.beta: "),
        ("{optimizer=sgd: {optimizer.lr: 'interval(0.1,x)'}}", "optimizer.lr=interval(0.1,x): "),
    ):
        Path("conf/sweep").mkdir(parents=True, exist_ok=True)
        text = f"defaults: [optuna]\nparams: {{optimizer: 'sgd,adamw'}}\nwhen: {text}\n"
        Path("conf/sweep/mine.yaml").write_text(text)
        assert said(*command, "--config-dir=conf", "sweep=mine").startswith(f"imgcls train: {words}")
    grid = "defaults: [grid]\nwhen: {seed=0: {optimizer.lr: 1}}\n"
    Path("conf/sweep/mine.yaml").write_text(grid)
    assert "sweep.when: a grid has no conditions" in said(
        *command, "--config-dir=conf", "sweep=mine", "seed=0,1"
    )


def test_presets(here: Callable[..., None]) -> None:
    """The folds share nothing and are all of train; the test split is that of every other run."""
    here("train", "-m", *TINY, "sweep=kfold", "sweep.folds=2", "sweep.name=folds", "trainer.max_epochs=1")
    names = [path.name for path in jobs(Path("runs/sweeps/folds"))]
    assert names == ["0_data.fold=0", "1_data.fold=1"]
    for name, count in (("seeds", 5), ("backbones", 6)):
        preset = yaml.safe_load((ROOT / "conf" / "sweep" / f"{name}.yaml").read_text())
        (values,) = preset["params"].values()
        assert (values == "range(${sweep.n})" and preset["n"] == count) or len(values.split(",")) == count


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds(folds: int) -> None:
    whole, seen = Digits(), []
    whole.setup()
    for fold in range(folds):
        data = Digits(folds=folds, fold=fold)
        data.setup()
        assert torch.equal(data.sets["test"].stored, whole.sets["test"].stored)  # type: ignore[attr-defined]
        train, val = (data.sets[split].targets for split in ("train", "val"))
        assert len(train) + len(val) == 1797 - 359
        counts = torch.bincount(val, minlength=10)
        assert (counts - torch.bincount(torch.cat([train, val])) / folds).abs().max() < 1
        seen += [image.numpy().tobytes() for image in data.sets["val"].stored]  # type: ignore[attr-defined]
    images = [whole.sets[split].stored for split in ("train", "val")]  # type: ignore[attr-defined]
    everything = [image.numpy().tobytes() for stored in images for image in stored]
    assert sorted(seen) == sorted(everything)
    parts = [stratified_fold(np.array([0, 1, 1, 0, 2]), 3, fold) for fold in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4] and max(map(len, parts)) == 2


def test_names() -> None:
    assert job_name(["optimizer.lr=0.0012345678", "data.root=/a/b", "backbone=resnet20"], {"data.root"}) == (
        "optimizer.lr=0.001235,backbone=resnet20"
    )
    assert job_name(["+a.b={x:'1 2',y:${z}}"], set()) == "+a.b=_x_1_2_,y_z_"
    long = [f"group{i}.some.parameter=value{i}" for i in range(4)]
    assert job_name(long, set()) == "parameter=value0,parameter=value1,parameter=value2,parameter=value3"
    longer = [f"group.ключ{i}=значение{i}" for i in range(40)]
    name, other = job_name(longer, set()), job_name([*longer[:-1], "group.x=1"], set())
    assert len(name.encode()) <= LONGEST and name[:-8] == other[:-8] and name != other


def test_progress_line() -> None:
    folder = Path("sweep")
    sweep = Jobs("s", "val/loss", "min", total=6)
    assert sweep.line() == "sweep s: 0 of 6 done"
    sweep.begun = [
        Job(0, [], folder, "finished", [0.5]), Job(1, [], folder, "finished", [0.25]),
        Job(2, [], folder, "failed"), Job(3, [], folder, "pruned"), Job(4, [], folder),
    ]  # fmt: skip
    line = sweep.line()
    assert line.startswith(
        "sweep s: 3 of 6 done, 1 running, 1 pruned, 1 failed; best val/loss 0.2500 (job 1); 0:00:0"
    )


def test_a_launcher_needs_jobs(said: Callable[..., str]) -> None:
    expected = (
        "launcher=joblib: a launcher starts the jobs of -m; write imgcls train -m launcher=joblib seed=1"
    )
    assert expected in said("train", "launcher=joblib", "seed=1")


def test_a_sweep_of_a_file_without_m_is_said(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("conf/experiment").mkdir(parents=True)
    text = "# @package _global_\nsweep: {params: {seed: '3'}}\n"
    Path("conf/experiment/mine.yaml").write_text(text)
    said = "sweep: a file of the config sets one, and without -m this is one training"
    here("train", "--config-dir=conf", "experiment=mine", *TINY)
    assert said in capsys.readouterr().out
    here("train", "-m", "--config-dir=conf", "experiment=mine", *TINY)
    assert said not in capsys.readouterr().out


def test_the_direction_is_that_of_the_metric_on_these_classes(
    here: Callable[..., None], folder: Path
) -> None:
    data = ("data=imagefolder", f"data.root={folder}", "data.image_size=16", "data.num_workers=0")
    metric = ("+metrics.f._target_=torchmetrics.classification.MulticlassF1Score", "+metrics.f.num_classes=3")
    command = ("train", "-m", *TINY, *data, "data.batch_size=4", *metric, "seed=0", "optimized_metric=val/f")
    here(*command)
    (folder,) = sweeps()
    assert yaml.safe_load((folder / "sweep.yaml").read_text())["directions"] == ["max"]


def test_launchers_compose(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    for name, expected in (("local", "basic"), ("joblib", "joblib")):
        here("train", f"launcher={name}", "--cfg", "hydra", "-p", "hydra.runtime.choices")
        assert f"hydra/launcher: {expected}" in capsys.readouterr().out


def test_jobs_side_by_side_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine that says it has three GPUs, of which the user gives two."""
    monkeypatch.setattr("imgcls.engine.ranks.HELD", [])
    taken = []
    for _ in range(3):  # each its own process, in earnest
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
        take_gpu(tmp_path)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken[:2] == ["0", "2"] and taken[2] in ("0", "2")  # the third shares one
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    take_gpu(tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


MIXED = (
    "backbone=simple_cnn,resnet20",
    "trainer.precision=32-true,bf16-mixed",
    "optimizer.lr=0.003,-1",
    "seed=0,4",
)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_nothing_leaks_from_job_to_job(launcher: str) -> None:
    """Networks, precisions, seeds, failing jobs, two processes for one job; each against itself alone."""
    done = imgcls(
        "train", "-m", *TINY, *MIXED, f"launcher={launcher}", "sweep=grid", "sweep.name=mixed", timeout=600
    )
    assert done.returncode == 1 and "imgcls train: 8 of 16 jobs failed, the others are done:" in done.stderr
    two = ("trainer=ddp_cpu,cpu", "backbone=simple_cnn", "sweep=grid", "sweep.name=two")
    done = imgcls("train", "-m", *TINY[1:], *two, f"launcher={launcher}", timeout=600)
    assert done.returncode == 0, done.stderr
    assert [path.name.partition(",")[0] for path in jobs(Path("runs/sweeps/two"))] == [
        "0_trainer=ddp_cpu",
        "1_trainer=cpu",
    ]
    folders = [path for path in jobs(Path("runs/sweeps/mixed")) if "lr=0.003" in path.name]
    for folder in [folders[1], folders[6], *jobs(Path("runs/sweeps/two"))]:
        config = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        alone = Path("alone") / folder.name.partition("_")[0] / folder.parent.name
        done = imgcls(
            "train", *(o for o in config if not o.startswith(("job.", "launcher"))), f"hydra.run.dir={alone}"
        )
        assert done.returncode == 0, done.stderr
        assert same(alone, folder), folder


@pytest.mark.slow
def test_search_killed_and_finished_by_the_same_command() -> None:
    """Twelve trials: SIGKILL in the sixth. The end is that of a search that nobody disturbed."""
    command = ("train", "-m", *TINY, "sweep=optuna", SPACE, "data.batch_size=16,32", "trainer.max_epochs=6")
    done = imgcls(*command, "sweep.name=whole", "sweep.n_trials=12", timeout=600)
    assert done.returncode == 0, done.stderr
    again = [sys.executable, "-m", "imgcls", *command, "sweep.name=killed", "sweep.n_trials=12"]
    process = subprocess.Popen(
        again, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    while "job 5_" not in process.stdout.readline():
        assert process.poll() is None
    while "epoch 3/6" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(1)
    assert states(Path("runs/sweeps/killed"))[5:] == ["RUNNING"]
    done = imgcls(*command, "sweep.name=killed", "sweep.n_trials=12", timeout=600)
    assert done.returncode == 0, done.stderr
    whole, killed = Path("runs/sweeps/whole"), Path("runs/sweeps/killed")
    assert states(killed) == states(whole) == ["COMPLETE"] * 12
    assert [t.values for t in study(killed).trials] == [t.values for t in study(whole).trials]
    assert study(killed).trials[5].user_attrs["killed"] == 1
    assert all(same(one, other) for one, other in zip(jobs(whole), jobs(killed), strict=True))


@pytest.mark.slow
def test_two_processes_agree_about_the_trial() -> None:
    """A pruned search on two processes: one directory, one set of files, one W&B run for each trial."""
    done = imgcls(
        "train", "-m", *TINY[1:3], "trainer=ddp_cpu", "sweep=optuna", "sweep.n_trials=2", "sweep.name=ddp",
        "sweep.pruner={_target_: optuna.pruners.ThresholdPruner,lower: 0.99}", SPACE, "trainer.max_epochs=4",
        "test=false",
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = Path("runs/sweeps/ddp")
    assert sweeps() == [folder] and states(folder) == ["PRUNED", "PRUNED"]
    for job in jobs(folder):
        assert len(outcome(job)[1]) == 1 and len(list((job / "wandb").glob("offline-run-*"))) == 1
    assert len(list(Path("runs").rglob("config.yaml"))) == 2 * 2  # each run's, and Hydra's


@pytest.mark.slow
def test_two_workers_share_a_search() -> None:
    command = (
        sys.executable,
        "-m",
        "imgcls",
        "train",
        "-m",
        *TINY,
        "sweep=random",
        "sweep.n_trials=8",
        SPACE,
    )
    both = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    (folder,) = sweeps()
    assert states(folder) == ["COMPLETE"] * 8 and len(jobs(folder)) == 8
    assert len({trial.user_attrs["worker"] for trial in study(folder).trials}) == 2


def test_several_objectives(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    two = ("sweep.n_trials=3", "optimized_metric=[val/top1,val/loss]")
    here("train", "-m", *TINY, "sweep=optuna", *two, SPACE)
    (folder,) = sweeps()
    front = {trial.number for trial in study(folder).best_trials}
    lines = re.findall(r"no job is better in all \(Pareto front\): (.*): (.*)", capsys.readouterr().out)
    assert [Path(path) for _, path in lines] == [job for i, job in enumerate(jobs(folder)) if i in front]
    assert all(values.startswith("val/top1 0.") and ", val/loss " in values for values, _ in lines)
    values = [trial.values for trial in study(folder).trials]
    assert [direction.name for direction in study(folder).directions] == ["MAXIMIZE", "MINIMIZE"]
    for job, (top1, loss) in zip(jobs(folder), values, strict=True):
        row = max(outcome(job)[1], key=lambda row: float(row["val/top1"]))
        assert (top1, loss) == (float(row["val/top1"]), float(row["val/loss"]))


@pytest.mark.slow
def test_other_searches(here: Callable[..., None]) -> None:
    """Hyperband, random draws for two objectives, and a Gaussian process, each to its end."""
    common = ("train", "-m", *TINY, SPACE, "data.batch_size=16,32")
    here(
        *common, "sweep=optuna_hyperband", "sweep.n_trials=8", "sweep.name=hyperband", "trainer.max_epochs=3"
    )
    found = states(Path("runs/sweeps/hyperband"))
    assert len(found) == 8 and set(found) <= {"COMPLETE", "PRUNED"} and "COMPLETE" in found
    assert all(trial.intermediate_values for trial in study(Path("runs/sweeps/hyperband")).trials)

    two = "optimized_metric=[val/top1,images_per_second]"
    here(*common, "sweep=random", "sweep.n_trials=3", "sweep.name=random", two)
    drawn = study(Path("runs/sweeps/random"))
    assert [word.name for word in drawn.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert [trial.state.name for trial in drawn.trials] == ["COMPLETE"] * 3
    assert all(0 <= top1 <= 1 < speed for top1, speed in (trial.values for trial in drawn.trials))

    process = ("sweep.sampler._target_=optuna.samplers.GPSampler", "+sweep.sampler.n_startup_trials=2")
    here(*common, "sweep=optuna", *process, "sweep.n_trials=5", "sweep.name=process")
    assert states(Path("runs/sweeps/process")) == ["COMPLETE"] * 5
    assert len({trial.params["optimizer.lr"] for trial in study(Path("runs/sweeps/process")).trials}) == 5
