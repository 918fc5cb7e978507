"""imgcls from Python: train, load, predict, and the names that a project imports."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import SHORT

import imgcls
from imgcls.data.pictures import Picture, pixels

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
    model, grey = run.model, np.zeros((4, 4), np.uint8)
    objects = np.array(["a.jpg"], dtype=object)
    empty, floats = grey[:0], Image.fromarray(np.full((4, 4), 7.0, np.float32))
    odd: list[object] = [5, None, [None], b"bytes", objects, empty, floats, Image.new("L", (0, 3))]
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 5), np.uint8), "missing.jpg", *odd):
        with pytest.raises(imgcls.UserError):
            model.predict(wrong)  # type: ignore[arg-type]
    for top_k in (0, -1, 2.5):
        with pytest.raises(imgcls.UserError, match="expected 1 or more"):
            model.predict(grey, top_k=top_k)  # type: ignore[arg-type]
    with pytest.raises(imgcls.UserError, match="there is no image to embed"):
        model.embed([])
    with pytest.raises(imgcls.UserError, match="device=cudax: "):
        imgcls.load(run.path, device="cudax")
    with pytest.raises(imgcls.UserError, match="nowhere: there is no run in it"):
        imgcls.Run(Path("nowhere")).metrics  # noqa: B018
    with pytest.raises(imgcls.UserError, match="--cfg job: this shows something and trains nothing"):
        imgcls.train(["--cfg", "job"])


def test_pictures_as_they_come(folder: Path) -> None:
    """Views of arrays, a frame of several, more than 8 bits: what is in hand is what is read."""
    array = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    assert torch.equal(pixels(array[::-1, :, ::-1]), pixels(array[::-1, :, ::-1].copy()))
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    frames[0].save("two.tiff", save_all=True, append_images=frames[1:])
    with Image.open("two.tiff") as opened:
        opened.seek(1)
        assert pixels(opened).unique().tolist() == [200] and opened.tell() == 1
    deep = np.full((4, 4), 4095, np.uint16)
    assert pixels(Image.fromarray(deep), 12).unique().tolist() == [255]
    Image.fromarray(deep).save("deep.png")
    run = imgcls.train([*SHORT, *OWN, f"data.root={folder}", "data.bits=12", "test=false"])
    with Image.open("deep.png") as opened:
        assert torch.equal(run.model.prepared(opened), run.model.prepared("deep.png"))
    assert run.model.embed("deep.png").shape == run.model.embed(["deep.png"]).shape


def test_several_labels_are_all_said() -> None:
    """By default no label that is given is left out, however many there are."""
    run = imgcls.train([*SHORT, "task=multilabel", "test=false", "task.thresholds=false"])
    model = imgcls.load(run.path)
    model.task.test_metrics.own["evaluation"].get_buffer("thresholds").fill_(1e-9)
    picture = model.data().sets["test"].picture(0)
    assert len(model.predict(picture).labels) == 10
    assert len(model.predict(picture, top_k=3).labels) == 3


def test_logging_is_as_it_was(tmp_path: Path) -> None:
    """After a training the process has its own handlers, and none that writes into the run's log."""
    root, own = logging.getLogger(), logging.NullHandler()
    root.addHandler(own)
    try:
        before = root.handlers[:], root.level
        imgcls.train([*SHORT, "test=false", "hydra.run.dir=run"])
        assert (root.handlers[:], root.level) == before
        logging.warning("mine")
        assert "mine" not in Path("run/run.log").read_text()
    finally:
        root.removeHandler(own)


def test_data_of_the_command_line() -> None:
    data = imgcls.load_data(["data=digits", "data.batch_size=7"])
    assert data.batch_size == 7 and len(data.sets["train"]) == 1295
    assert next(iter(data.val_dataloader())).images.shape == (7, 1, 8, 8)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data=nope", "data=nope: there is no such choice; choose one of: "),
        ("data.nope=3", "data.nope: there is no such key"),
        ("data.batch_size=[", "data.batch_size=["),
    ],
)
def test_data_of_a_wrong_command_line(word: str, said: str) -> None:
    with pytest.raises(imgcls.UserError, match=re.escape(said)):
        imgcls.load_data([word])


def test_data_of_a_path_with_signs_of_the_grammar(folder: Path) -> None:
    place = folder.rename(folder.with_name("a, b = {c}"))
    assert len(imgcls.load_data(["data=imagefolder", f"data.root={place}"]).sets["train"])


def test_every_name_is_there_and_the_import_is_light() -> None:
    from imgcls import api

    assert all(getattr(imgcls, name) is getattr(api, name) for name in api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        imgcls.nothing  # noqa: B018
    heavy = "import sys, imgcls; imgcls.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
    assert (Path(imgcls.__path__[0]) / "py.typed").is_file()
