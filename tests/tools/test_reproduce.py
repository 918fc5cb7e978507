"""imgcls reproduce: the same again, and what is said where it is not."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from support.command import imgcls
from support.pictures import write_picture
from support.runs import Here, write_run

from imgcls.data.digits import Digits
from imgcls.data.imagefolder import ImageFolder
from imgcls.engine.checkpoint import add_to_checkpoint
from imgcls.tools.reproduce import say_changes

SHORT = (
    "backbone.width=4",
    "backbone.dropout=0.2",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "augment.erase=0.5",
)


def test_the_same_and_not_the_same(
    here: Here,
    said: Callable[..., str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a relative path, dropout, erasing and EMA; from another folder; then with a result that was
    changed."""
    data = (
        "data=imagefolder",
        "data.root=pictures",
        "data.image_size=16",
        "data.batch_size=4",
        "data.num_workers=0",
    )
    here("train", *SHORT, *data, "callbacks=ema", "logger=[csv,wandb]", "hydra.run.dir=one")
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    here("reproduce", "run=../one", "out=two")
    out = capsys.readouterr().out
    same = [
        f"{what}: the same, bit for bit" for what in ("metrics.csv", "test metrics", "best.ckpt", "last.ckpt")
    ]
    assert out.splitlines()[-4:] == same
    record = json.loads(Path("two/reproduction.json").read_text())
    assert not any(record["results"].values()) and not any(record["circumstances"].values())
    assert not Path("two/wandb").exists() and Path.cwd() == elsewhere
    assert (
        said("reproduce", "run=../one", "out=two")
        == "imgcls reproduce: out=two holds a run already; give another folder"
    )

    weights = torch.load("../one/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    first = next(tensor for tensor in weights.values() if tensor.is_floating_point())
    first[(0,) * first.dim()] += 0.25
    add_to_checkpoint(Path("../one/checkpoints/best.ckpt"), state_dict=weights)
    table = Path("../one/metrics.csv").read_text().splitlines()
    names, last = table[0].split(","), table[-1].split(",")
    last[names.index("val/loss")] = str(float(last[names.index("val/loss")]) + 1)
    Path("../one/metrics.csv").write_text("\n".join([*table[:-1], ",".join(last), ""]))
    environment = json.loads(Path("../one/environment.json").read_text())
    environment["packages"]["torch"], environment["git"] = "1.0", {"commit": "abc"}
    Path("../one/environment.json").write_text(json.dumps(environment))
    write_picture(folder / "cat" / "00.jpg", seed=99, size=(64, 64))  # same name, other image
    message = said("reproduce", "run=../one", "out=three")
    what = "metrics.csv, test metrics, best.ckpt, last.ckpt"
    assert message == f"imgcls reproduce: the result is not the same: {what} differ; three has the run"
    lines = capsys.readouterr().out
    assert re.search(r"^best.ckpt: \d+ of \d+ tensors, by up to ", lines, re.M)
    assert re.search(r"^metrics.csv: .*val/loss from epoch \d on, by up to ", lines, re.M)
    assert "environment: torch (package) was 1.0 and is" in lines and "git: commit was abc and is" in lines
    assert "data: train was" in lines or "data: val was" in lines or "data: test was" in lines


def test_refused(said: Callable[..., str]) -> None:
    write_run(Path("killed"), status="running")
    Path("empty").mkdir()
    old = write_run(Path("old")) / "config.yaml"
    config = yaml.safe_load(old.read_text())
    del config["recovery"]
    old.write_text(yaml.safe_dump(config))
    assert "run=old was made by another version of imgcls" in said("reproduce", "run=old")
    assert said("reproduce", "run=killed").startswith(
        "imgcls reproduce: run=killed is unfinished (it runs still, or was killed); "
    )
    assert (
        said("reproduce", "run=empty")
        == "imgcls reproduce: run=empty: there is no run in it (no config.yaml); expected a run directory"
    )


def test_a_run_that_was_changed_on_the_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"resumed": [{"time": "t1"}, {"time": "t2", "changed": ["optimizer.lr: 0.1 → 0.01"]}]}
    (tmp_path / "environment.json").write_text(json.dumps(record))
    say_changes(tmp_path)
    (line,) = caplog.messages
    assert line.startswith("the run was changed on the way, at t2: optimizer.lr: 0.1 → 0.01")


def test_fingerprint(folder: Path) -> None:
    """Is that of the images and labels, whatever the path and the seed are."""

    def of(root: Path) -> dict[str, str]:
        data = ImageFolder(root=str(root), image_size=16, mean=[0.5], std=[0.2])
        data.setup()
        return data.fingerprint()

    first = of(folder)
    assert set(first) == {"train", "val", "test"} and len(set(first.values())) == 3
    moved = folder.rename(folder.parent / "moved")
    assert of(moved) == first
    write_picture(moved / "cat" / "00.jpg", seed=5, size=(64, 64))
    assert sum(of(moved)[split] != first[split] for split in first) == 1
    (moved / "cat" / "01.jpg").rename(moved / "dog" / "12.jpg")
    assert of(moved)["train"] != first["train"]

    digits = [Digits(), Digits(), Digits(fraction=0.5)]
    for data in digits:
        data.setup()
    one, same, half = (data.fingerprint() for data in digits)
    assert one == same and half["train"] != one["train"] and half["test"] == one["test"]
    digits[1].sets["train"].stored[0, 0, 0, 0] += 1  # type: ignore[attr-defined]
    assert digits[1].fingerprint()["train"] != one["train"]


@pytest.mark.slow
def test_two_processes() -> None:
    """The ranks of a reproduction are started as those of a training."""
    done = imgcls(
        "train", *SHORT, "trainer=ddp_cpu", "trainer.max_epochs=1", "logger=csv", "hydra.run.dir=one"
    )
    assert done.returncode == 0, done.stderr
    done = imgcls("reproduce", "run=one", "out=two")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("last.ckpt: the same, bit for bit") == 1
    assert json.loads(Path("two/status.json").read_text())["status"] == "finished"
