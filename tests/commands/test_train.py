"""imgcls train and eval as users run them: in processes of their own, on real files."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from support.command import imgcls

from imgcls.config.training import TrainerConfig
from imgcls.engine.build import share_batch
from imgcls.errors import UserError

Here = Callable[..., None]
SHORT = ("trainer.max_epochs=2", "trainer.limit_train_batches=4")
EVERYTHING = """
    data=imagefolder data.image_size=32 data.crop_ratio=1 data.batch_size=4 data.num_workers=2
    augment=randaugment augment.erase=0.5 augment.mixup.probability=0.5 augment.cutmix.probability=0.5
    backbone=resnet20 loss=focal optimizer=sgd scheduler=one_cycle task.class_weights=balanced
    callbacks=[ema,early_stopping] logger=[csv,tensorboard] seed=3
    trainer.gradient_clip_val=1 trainer.accumulate_grad_batches=2
"""


def run_directory(under: str = "runs") -> Path:
    found = sorted(path.parent for path in Path(under).rglob("config.yaml") if ".hydra" not in path.parts)
    assert len(found) == 1, found
    return found[0]


def epochs(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def metrics(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def test_default_run_and_eval_say_the_same(here: Here, said: Callable[..., str]) -> None:
    done = imgcls("train", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    imported = imports([line for line in lines if line.startswith("import time:")])
    assert not imported & {"sklearn", "torchcodec", "timm", "optuna"} and "torch" in imported
    assert [line for line in lines if not line.startswith("import time:")] == []
    run = run_directory()
    found = metrics(run / "test")
    assert float(epochs(run)[-1]["train/top1"]) >= 0.99
    assert max(float(row["val/top1"]) for row in epochs(run)) >= 0.98
    # Which epoch is best on 143 images is decided by the rounding of a machine: at the test no more is sure.
    assert found["test/top1"] >= 0.96 and found["test/top5"] >= found["test/top1"]
    for line in (
        "data: 1,295 train, 143 val, 359 test",
        "epoch 20/20",
        "Test of the best checkpoint",
        f"evaluate again: imgcls eval checkpoint={run}",
    ):
        assert line in done.stdout, done.stdout
    best = max(epochs(run), key=lambda row: float(row["val/top1"]))
    epoch, value = int(best["epoch"]), f"val/top1 {float(best['val/top1']):.4f}"
    assert f"best epoch: {epoch + 1}/20 ({epoch} in metrics.csv), {value}" in done.stdout
    page = (run / "test/index.html").read_text()
    for fact in (
        "digits, test split",
        "simple_cnn",
        "best.ckpt",
        f"{epoch + 1} of 20 ({epoch} in metrics.csv), {value}",
    ):
        assert fact in page
    assert "max_epochs: 20" in page and "Loss and metric over epochs" in page and "trained by" in page
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "wandb" not in p.parts}
    assert names >= {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "run.log",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "test/metrics.json",
        "test/per_class.csv",
        "test/confusion_matrix.csv",
        "test/confusion_matrix.png",
        "test/predictions.csv",
    }
    rows = epochs(run)
    assert [row["epoch"] for row in rows] == [str(i) for i in range(20)]
    assert all(
        float(row[name]) >= 0
        for row in rows
        for name in ("train/loss", "val/top1", "lr", "images_per_second")
    )
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 20 * 20
    check_wandb(run, rows)

    assert "holds a run already" in said("train", f"hydra.run.dir={run}", "trainer.max_epochs=1")
    here("eval", f"checkpoint={run}")
    folder = next(Path("runs/eval").iterdir())
    assert metrics(folder) == found  # to the last digit
    assert (folder / "predictions.csv").read_text() == (run / "test" / "predictions.csv").read_text()


def imports(lines: list[str]) -> set[str]:
    """Returns the modules of Python's lines, but for what cleanlab imports to look for label errors after
    the test. A module comes after what it imports, which is indented further."""
    found, within = set(), 1000
    for line in reversed(lines):
        name = line.rpartition("|")[2]
        depth = len(name) - len(name.lstrip())
        if depth <= within:
            within = depth if name.strip() == "cleanlab" else 1000
            found.add(name.strip())
    return found


def check_wandb(run: Path, rows: list[dict[str, str]]) -> None:
    """Reads the offline run's own file back."""
    command = [
        str(Path(sys.executable).parent / "wandb"),
        "leet",
        "inspect",
        "--json",
        str(next((run / "wandb").glob("offline-run-*/*.wandb"))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    best = max(float(row["val/top1"]) for row in rows)
    for part in (
        "simple_cnn",
        "best/val/top1",
        "test/top1",
        "test/worst_mistakes",
        "test/confusion_matrix",
        "test/reliability",
        "train/loss_step",
    ):
        assert part in text, f"{part} is not in the W&B file"
    assert f'"best/val/top1":{best:.16g},' in text
    assert next((run / "wandb").rglob("*worst_mistakes*.table.json")).stat().st_size > 0


def test_folder_with_workers_and_everything_on(folder: Path, here: Here, said: Callable[..., str]) -> None:
    done = imgcls("train", f"data.root={folder}", *EVERYTHING.split(), *SHORT)
    assert done.returncode == 0, done.stderr
    run = run_directory()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["seed"] == 3 and config["data"]["root"] == str(folder)
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["config"]["backbone"]["depth"] == 20
    assert list((run / "tensorboard").glob("events*"))
    first = (run / "test" / "predictions.csv").read_text().splitlines()[1]
    assert first.startswith(str(folder / "cat"))
    other_data(run, folder, here, said)


def other_data(run: Path, folder: Path, here: Here, said: Callable[..., str]) -> None:
    """Another folder is matched by class name, whichever it has; what the checkpoint lacks is refused."""
    arguments = (
        "eval",
        f"checkpoint={run}",
        "data=imagefolder",
        f"data.root={folder}",
        "data.image_size=32",
        "split=all",
    )
    known = pd.read_csv(run / "test" / "predictions.csv").set_index("name")
    shutil.rmtree(folder / "cat")
    here(*arguments)
    found = pd.read_csv(next(Path("runs/eval").glob("*/predictions.csv")))
    assert len(found) == 24
    found = found[found["name"].isin(known.index)]
    assert len(found) and (found["target"].to_numpy() == known.loc[found["name"], "target"].to_numpy()).all()
    assert set(found["target"]) == {"dog", "fox"}
    (folder / "fox").rename(folder / "wolf")
    wolf = "the data has the class 'wolf', which the checkpoint does not know; choose one of: cat, dog, fox"
    assert said(*arguments) == f"imgcls eval: {wolf}"


def test_two_processes_report_what_one_reports(here: Here) -> None:
    """The test set has 359 images: it does not divide by two."""
    done = imgcls(
        "train",
        "trainer=ddp_cpu",
        "logger=csv",
        "augment.mixup.probability=0.5",
        "task.class_weights=[1,5,1,1,0.1,1,9,1,1,1]",
        "task.temperature=true",
        *SHORT,
    )
    assert done.returncode == 0, done.stderr
    run = run_directory()  # one directory, one set of files
    assert len(epochs(run)) == 2
    assert done.stdout.count("epoch 2/2") == 1
    here("eval", f"checkpoint={run}")
    alone = metrics(next(Path("runs/eval").iterdir()))
    together = metrics(run / "test")
    assert together.keys() == alone.keys()
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-6)  # sums of float32 in another order
    assert together["test/top1"] == alone["test/top1"]
    assert together["test/temperature"] == alone["test/temperature"] != 1
    assert (
        done.stdout.count("fitted on 143 validation images") == 1 and (run / "test" / "mistakes.png").exists()
    )
    assert len((run / "test" / "predictions.csv").read_text().splitlines()) == 360


def test_multirun_makes_a_run_for_each(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """And says how to evaluate it: the folder's name has `=` and `,`, as what it overrides."""
    here("train", "-m", "backbone=simple_cnn,resnet20", "debug=fast", "seed=choice(1)")
    runs = sorted(path.parent.name for path in Path("runs/sweeps").rglob("metrics.csv"))
    assert [name.split("_")[0] for name in runs] == ["0", "1"] and "resnet20" in runs[1] and "," in runs[1]
    command = re.findall("evaluate again: imgcls (.*)", capsys.readouterr().out)[1]
    assert command.startswith("eval checkpoint=runs/sweeps/") and runs[1] in command and "'" not in command
    here(*shlex.split(command))
    assert "Test of runs/sweeps/" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["overfit", "profile"])
def test_debug_presets(preset: str, here: Here) -> None:
    here("train", f"debug={preset}", *(["trainer.max_epochs=20"] if preset == "overfit" else []))
    run = run_directory()
    if preset == "profile":
        assert "optimizer_step" in next(run.glob("*profile*")).read_text()
    else:
        rows = epochs(run)
        assert float(rows[-1]["train/top1"]) > 0.9 > float(rows[0]["train/top1"])


@pytest.mark.slow
def test_sharded_on_two_cpu_processes(here: Here) -> None:
    strategy = "{_target_: imgcls.engine.ranks.FullyShardStrategy}"
    first = ["finetune=staged", "optimized_metric=val/loss", "optimized_mode=max"]  # then less learnt
    done = imgcls("train", "trainer=ddp_cpu", f"trainer.strategy={strategy}", "logger=csv", *SHORT, *first)
    assert done.returncode == 0, done.stderr
    here("eval", f"checkpoint={run_directory()}")


@pytest.mark.slow  # test_resume.py stops within this process
def test_stopped_from_outside() -> None:
    """The status and a line say that it can go on; nothing is tested, and what was saved is whole."""
    command = [sys.executable, "-m", "imgcls", "train", "trainer.max_epochs=1000", "logger=csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    while "epoch 3/1000" not in said:
        said = process.stdout.readline()
        assert said, "it ended by itself"
    process.terminate()
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 75
    run = run_directory()
    assert f"go on with: imgcls train resume={run}" in rest
    assert not (run / "test").exists()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] >= 3


def test_epochs_without_a_key_are_lightnings(here: Callable[..., None]) -> None:
    """`~trainer.max_epochs` takes the key away; null would train without end."""
    here("train", *SHORT, "test=false", "~trainer.max_epochs", "trainer.max_steps=2", "hydra.run.dir=run")
    record = yaml.safe_load(Path("run/config.yaml").read_text())
    assert "max_epochs" not in record["trainer"]


def test_a_name_that_is_a_number(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """And the last lines of a training without a test."""
    here("train", *SHORT, "test=false", "names.run=12", "hydra.run.dir=run")
    closing = capsys.readouterr().out.splitlines()[-4:]
    assert closing[:2] == ["test: none (test=false)", "run directory: run"]
    assert re.fullmatch(r"best epoch: \d/2 \(\d in metrics.csv\), val/top1 0\.\d{4}", closing[2])
    assert closing[3] == "evaluate: imgcls eval checkpoint=run/checkpoints/best.ckpt"
    assert yaml.safe_load(Path("run/config.yaml").read_text())["names"]["run"] == 12


def test_own_root_of_a_verb_writes_where_the_verb_does(here: Callable[..., None]) -> None:
    Path("conf").mkdir()
    Path("conf/mine.yaml").write_text("defaults: [compare, _self_]\n")
    here("train", *SHORT, "test=false", "hydra.run.dir=old/run")
    here("compare", "--config-dir=conf", "--config-name=mine", "runs=old")
    assert len(list(Path("runs/compare").iterdir())) == 1


def test_a_global_batch_is_shared(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """48 images are the most that the device takes: 4 batches of 32 make a step, and its rate."""
    given = (
        "trainer=cpu",
        "trainer.global_batch_size=128",
        "data.batch_size=48",
        "optimizer.lr_per_256=0.004",
    )
    here(
        "train",
        *given,
        "trainer.max_epochs=1",
        "scheduler=constant",
        "logger=csv",
        "test=false",
        "hydra.run.dir=run",
    )
    assert "a step: 128 samples, 1 × 32 × 4 accumulated" in capsys.readouterr().out
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1295 // 32 // 4
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("total", "accumulated", "said"),
    [
        (9, 1, "trainer.global_batch_size=9: expected a multiple of the 2 devices"),
        (
            8,
            2,
            "trainer.global_batch_size=8 says how much is accumulated; leave out trainer.accumulate_grad_",
        ),
    ],
)
def test_a_batch_that_can_not_be_shared(total: int, accumulated: int, said: str) -> None:
    trainer: Any = SimpleNamespace(world_size=2, accumulate_grad_batches=accumulated)
    data: Any = SimpleNamespace(batch_size=4, sets={"train": range(16)})
    with pytest.raises(UserError) as caught:
        share_batch(TrainerConfig(global_batch_size=total), data, trainer)
    assert str(caught.value).startswith(said)


def test_without_a_validation_split(
    here: Here, said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """All training images are trained on, and the last epoch is tested."""
    words = ("trainer=cpu", "data.val_fraction=0", "logger=csv", "hydra.run.dir=run", "trainer.max_epochs=3")
    nothing = "with data.val_fraction=0 nothing is validated; watch train/loss"
    assert nothing in said("train", *words)
    fits = "data.val_fraction=0 leaves no images to fit on; write task.temperature=false"
    assert fits in said("train", *words, "optimized_metric=train/loss", "task.temperature=true")
    here("train", *words, "optimized_metric=train/loss", "optimizer.lr=0.0")
    printed = capsys.readouterr().out
    assert "data: 1,438 train, 0 val, 359 test" in printed
    assert "best epoch: not chosen: nothing was validated, and the last one is kept as the best" in printed
    assert torch.load("run/checkpoints/best.ckpt", weights_only=True)["epoch"] == 2
    assert not any(name.startswith("val/") for name in epochs(Path("run"))[0])
    assert "split=val: data.val_fraction=0 leaves none" in said("eval", "checkpoint=run", "split=val")
    here("eval", "checkpoint=run", "hydra.run.dir=again")
    assert metrics(Path("run/test")) == metrics(Path("again"))
    frozen = ("finetune=linear_probe", "augment=none", "optimized_metric=train/loss", "overwrite=true")
    here("train", *words, *frozen, "trainer.max_epochs=1", "test=false")
