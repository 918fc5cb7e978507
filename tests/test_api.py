"""imgcls from Python: train, load, predict, and the names that a project imports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import SHORT

import imgcls
from imgcls.api import Picture

OWN = ["data=imagefolder", "data.image_size=24", "data.num_workers=0", "trainer.limit_train_batches=2"]


def test_ten_lines(folder: Path) -> None:
    """Trains, reads what was measured, and labels pictures in every form that they come in."""
    run = imgcls.train([*SHORT, *OWN, f"data.root={folder}", "task.temperature=true", "hydra.run.dir=run"])
    assert run.path == Path("run").absolute()
    assert {"val/top1", "train/loss", "test/top1", "test/loss"} <= run.metrics.keys()
    assert len(run.curves()) == 3 and run.config["data"]["image_size"] == 24

    model, path = imgcls.load(run.path), folder / "cat" / "00.jpg"
    assert model.spec.class_names == ("cat", "dog", "fox")
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    array = np.array(picture)
    one = model.predict(path)
    assert sorted(one.labels) == ["cat", "dog", "fox"] and sum(one.probabilities) == pytest.approx(1)
    forms: list[Picture] = [str(path), picture, array, torch.from_numpy(array).permute(2, 0, 1)]
    found = model.predict(forms, top_k=1)
    assert [len(prediction.labels) for prediction in found] == [1] * 4
    assert found[0].probabilities == one.probabilities[:1]
    for other in found[1:]:
        assert other.labels == one.labels[:1] and other.probabilities == pytest.approx(found[0].probabilities)
    assert model.embed(forms).shape[0] == 4
    report = model.test()
    assert report.metrics == pytest.approx({k: v for k, v in run.metrics.items() if k.startswith("test/")})
    assert len(report.predictions) == len(run.model.data().sets["test"]) > 0


def test_it_says_what_the_command_says(folder: Path) -> None:
    with pytest.raises(imgcls.UserError, match="backbone=resnet21: there is no such choice"):
        imgcls.train(["backbone=resnet21"])
    with pytest.raises(imgcls.UserError, match="runs one training"):
        imgcls.train(["-m", "seed=1,2"])
    with pytest.raises(imgcls.UserError, match="nowhere"):
        imgcls.load("nowhere")
    run = imgcls.train([*SHORT, *OWN, f"data.root={folder}", "test=false", "hydra.run.dir=run"])
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 5), np.uint8), "missing.jpg"):
        with pytest.raises(imgcls.UserError):
            run.model.predict(wrong)


def test_data_of_the_command_line() -> None:
    data = imgcls.load_data(["data=digits", "data.batch_size=7"])
    assert data.batch_size == 7 and len(data.sets["train"]) == 1295
    assert next(iter(data.val_dataloader())).images.shape == (7, 1, 8, 8)


def test_every_name_is_there_and_the_import_is_light() -> None:
    from imgcls import api

    assert all(getattr(imgcls, name) is getattr(api, name) for name in api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        imgcls.nothing  # noqa: B018
    heavy = "import sys, imgcls; imgcls.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
    assert (Path(imgcls.__path__[0]) / "py.typed").is_file()
