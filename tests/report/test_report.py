"""The test report, from known predictions to pictures and a page; temperature scaling."""

import json
import logging
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from sklearn import metrics as sklearn
from support.command import imgcls
from support.pages import HOSTILE, elements
from torch import Tensor, nn

from imgcls.__main__ import main
from imgcls.data.batch import Batch
from imgcls.data.memory import MemoryImages
from imgcls.engine.checkpoint import add_to_checkpoint
from imgcls.errors import UserError
from imgcls.report import figures
from imgcls.report.calibration import fit_temperature
from imgcls.report.classification import ClassificationReport, class_scores, confused_pairs
from imgcls.report.figures import draw_confusion, reliability
from imgcls.report.report import print_summary
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.measures import Gathered
from imgcls.tasks.metrics import Outputs
from imgcls.tasks.task import load_checkpoint

# Temperature


@pytest.mark.parametrize(("margin", "temperature"), [(3 * math.log(3), 3.0), (0.5 * math.log(3), 0.5)])
def test_temperature_by_hand(margin: float, temperature: float) -> None:
    """Three of four are right, so the confidence should be 3/4, whose margin of logits is log 3."""
    logits = torch.tensor([[margin, 0.0]]).repeat(8, 1)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1] * 2)) == pytest.approx(temperature, rel=1e-3)


def test_temperature_of_many_classes() -> None:
    """Targets drawn from softmax(logits / 2.5) are best explained by 2.5."""
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(20_000, 10, generator=generator)
    targets = torch.multinomial((logits / 2.5).softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, targets) == pytest.approx(2.5, rel=0.03)


def test_temperature_where_there_is_none() -> None:
    assert fit_temperature(5 * torch.eye(3), torch.arange(3)) == 1.0
    assert fit_temperature(torch.full((2, 3), torch.nan), torch.tensor([0, 1])) == 1.0


def small_classifier(classes: int = 3, channels: int = 1, size: int = 8, **spec: Any) -> ImageClassifier:
    torch.manual_seed(0)
    names = [f"class {i}" for i in range(classes)]
    facts = {"class_names": names, "channels": channels, "image_size": size, "mean": [0.5] * channels}
    backbone = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
    loss = {"_target_": "torch.nn.CrossEntropyLoss"}
    return ImageClassifier({**facts, "std": [0.5] * channels, **spec}, backbone, loss).eval()


def test_temperature_is_in_the_logits_and_not_in_training(tmp_path: Path) -> None:
    classifier = small_classifier()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 1, 2, 0, 1]), torch.arange(5), torch.ones(5).bool())
    before, loss = classifier(images), classifier.training_step(batch, 0)
    path = tmp_path / "best.ckpt"
    content = {
        "state_dict": classifier.state_dict(),
        "hyper_parameters": dict(classifier.hparams),
        "config": {},
    }
    torch.save({**content, "pytorch-lightning_version": "2.6.4"}, path)
    assert load_checkpoint(path)[0].temperature == 1.0
    add_to_checkpoint(path, temperature=2.0)
    assert [p.name for p in tmp_path.glob("best*")] == ["best.ckpt"]
    for loaded in (load_checkpoint(path)[0], ImageClassifier.load_from_checkpoint(path)):
        assert torch.equal(loaded(images), before / 2)
    classifier.on_load_checkpoint({"temperature": 2.0})  # as at a resume
    assert torch.equal(classifier(images), before / 2)
    assert torch.equal(classifier.training_step(batch, 0), loss)
    classifier.on_fit_start()
    assert classifier.temperature == 1.0


# Tables


def test_class_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    targets, predicted = generator.integers(0, 4, 50), generator.integers(1, 5, 50)
    labels = np.arange(6)  # none is of class 5, none is predicted as 0, none of 4 is there
    scores = class_scores(sklearn.confusion_matrix(targets, predicted, labels=labels))
    expected = sklearn.precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=0.0)
    for found, wanted in zip(scores.values(), expected, strict=True):
        assert found == pytest.approx(wanted)


def test_confused_pairs_by_hand() -> None:
    confusion = np.array([[8, 2, 0], [2, 1, 0], [0, 1, 9]])
    pairs = confused_pairs(confusion, np.array(["cat", "dog", "fox"], dtype=object))
    assert pairs.to_dict("list") == {
        "true": ["dog", "cat", "fox"], "predicted": ["cat", "dog", "dog"], "count": [2, 2, 1],
        "share": [2 / 3, 0.2, 0.1],
    }  # fmt: skip
    assert len(confused_pairs(np.diag([3, 4]), np.array(["a", "b"]))) == 0


def test_reliability_by_hand() -> None:
    confidences = np.array([0.62, 0.65, 0.95, 1.0, 0.97], dtype=np.float32)
    bins: Any = reliability(confidences, np.array([True, False, True, True, False]))
    assert len(bins) == 15 and bins["share"].sum() == pytest.approx(1)
    assert bins.loc[9].tolist() == pytest.approx([0.5, 0.635, 0.4])  # 9/15 is 0.6
    assert bins.loc[14].tolist() == pytest.approx([2 / 3, 2.92 / 3, 0.6])
    assert bins.drop([9, 14]).isna().all(axis=None)


# The whole report


def known(
    classes: int, samples: int, channels: int, size: int, wrong: float, seed: int = 0
) -> tuple[ImageClassifier, MemoryImages, ClassificationReport]:
    """Returns a classifier, images, and a report of predictions of which a share is wrong."""
    generator = torch.Generator().manual_seed(seed)
    classifier = small_classifier(classes, channels, size)
    targets = torch.randint(classes, (samples,), generator=generator)
    shift = (torch.rand(samples, generator=generator) < wrong) * torch.randint(
        1, 3, (samples,), generator=generator
    )
    logits = 5 * nn.functional.one_hot((targets + shift) % classes, classes)
    logits = logits + torch.randn(samples, classes, generator=generator)
    images = torch.randint(0, 256, (samples, channels, size, size), generator=generator, dtype=torch.uint8)
    gathered, classifier.temperature = Gathered(), 1.5
    kept = classifier.predictions(Outputs(torch.tensor(0.0), logits / 1.5, targets))
    gathered.update(torch.arange(samples), kept)
    classifier.tested, classifier.temperature = gathered.compute(), 1.0
    dataset = MemoryImages(images, targets)
    metrics = {"test/top1": 0.9, "test/loss": 0.2, "test/calibration_error": 0.04, "test/loss_unscaled": 0.3}
    metrics |= {"test/calibration_error_unscaled": 0.09, "test/temperature": 1.5}
    return classifier, dataset, classifier.report(metrics, dataset)


def write(report: ClassificationReport, folder: Path) -> str:
    report.write(folder)
    report.draw(folder)
    return (folder / "index.html").read_text()


@pytest.mark.parametrize(
    ("classes", "channels", "size", "wrong"), [(2, 1, 8, 0.3), (10, 3, 224, 0.2), (4, 2, 9, 0)]
)
def test_everything_is_drawn(
    classes: int, channels: int, size: int, wrong: float, tmp_path: Path, capsys: Any
) -> None:
    classifier, dataset, report = known(classes, 40, channels, size, wrong)
    if not wrong:
        targets, confidences = torch.tensor([0, 3]), torch.tensor([0.5, 1.0])
        classifier.tested = {"indices": torch.arange(2), "targets": targets, "predictions": targets}
        classifier.tested["confidences"] = confidences
        report = classifier.report({"test/top1": 1.0, "test/calibration_error": 0.1}, dataset)
    text = write(report, tmp_path)
    names = {"confusion_matrix.png", "reliability.png"} | ({"mistakes.png"} if wrong else set())
    assert {path.name for path in tmp_path.glob("*.png")} == names
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 24) or []) > 5
    assert not re.search(r"https?:|<script|<link|src=\"(?!data:)", text)
    print_summary("Test", report, {})
    said = capsys.readouterr().out
    assert ("most confused" in said) == ("Most confused" in text) == bool(wrong)
    assert ("Grad-CAM" in text) == bool(wrong)
    wrong_rows = report.predictions[report.predictions["target"] != report.predictions["prediction"]]
    worst = wrong_rows["confidence"].sort_values(ascending=False).head(16)
    assert [mistake.confidence for mistake in report.mistakes] == worst.tolist()
    assert text.count("data:image/png") == 2 + 2 * len(worst)
    assert all(m.evidence is not None and m.evidence.shape == m.picture.shape for m in report.mistakes)


def test_names_are_text_in_the_page(tmp_path: Path) -> None:
    """Of classes, pairs, metrics and pictures: the page has the same elements whatever they are called."""
    pages = {}
    for name in ("plain", f"{HOSTILE}$x_1${{{{ 7*7 }}}}"):
        classifier, _, report = known(3, 30, 1, 8, 0.5)
        for column in ("target", "prediction"):
            report.predictions[column] = report.predictions[column].replace("class 0", name)
        report.predictions["name"] = report.pairs["true"] = report.per_class["class"] = name
        report.metrics[f"test/{name}"] = 1.0
        classifier.spec = type(classifier.spec)((name, "class 1", "class 2"), 1, 8, (0.5,), (0.5,))
        pages[name] = write(report, tmp_path)
    plain, hostile = map(elements, pages.values())
    assert [tag for tag, _ in plain] == [tag for tag, _ in hostile] and "&lt;img src=x" in pages[name]
    assert {key for _, attributes in hostile for key, _ in attributes} == {
        "lang", "charset", "name", "content", "class", "src", "alt", "style",
    }  # fmt: skip


def test_a_failed_picture_is_one_line(tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, dataset, report = known(3, 40, 1, 8, 0.5)
    (gone, *_) = report.predictions[~report.right()].nlargest(1, "confidence")["index"]
    whole = dataset.picture

    def picture(index: int) -> Tensor:
        if index == gone:
            raise UserError("a.jpg can't be read as an image\n(No such file)")
        return whole(index)

    monkeypatch.setattr(dataset, "picture", picture)
    monkeypatch.setattr(classifier, "network", nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    monkeypatch.setattr(figures, "draw_reliability", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        text = write(report, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"test report: no picture of {gone} (a.jpg can't be read as an image (No such file))",
        "test report: no Grad-CAM (no layer has maps of more than one place)",
        "test report: no reliability diagram (division by zero)",
    ]
    assert len(report.mistakes) == min(15, len(report.predictions[~report.right()]) - 1)
    assert (tmp_path / "mistakes.png").exists() and "Grad-CAM" not in text
    assert json.loads((tmp_path / "metrics.json").read_text()) == report.metrics


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_names_at_the_confusion_matrix(classes: int, tmp_path: Path) -> None:
    names = [f"a rather long class name {i}" for i in range(classes)]
    figure = draw_confusion(np.eye(classes, dtype=np.int64) * 9 + 1, names)
    figure.savefig(tmp_path / "matrix.png", dpi=120)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ([] if classes > 100 else [f"{name[:19]}…" for name in names])
    with Image.open(tmp_path / "matrix.png") as image:
        assert max(image.size) <= 1800


# As used


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def command(*arguments: str) -> None:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["imgcls", *arguments])
        main()

    return command


def metrics(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.json").read_text()))


SHORT = ("trainer.max_epochs=4", "data.val_fraction=0.3")


def test_trained_with_a_temperature(run: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    run("train", *SHORT, "task.temperature=true", "hydra.run.dir=scaled")
    said = capfd.readouterr()
    run("train", *SHORT, "hydra.run.dir=plain", "logger=csv")
    run("eval", "checkpoint=scaled", "hydra.run.dir=again")
    scaled, plain = metrics(Path("scaled/test")), metrics(Path("plain/test"))
    assert metrics(Path("again")) == scaled  # to the last digit
    for name in ("predictions.csv", "confusion_matrix.csv", "confused_pairs.csv"):
        assert Path("again", name).read_text() == Path("scaled/test", name).read_text()
    kept = ("top1", "top5", "precision", "recall", "f1")
    assert all(scaled[f"test/{name}"] == plain[f"test/{name}"] for name in kept)
    for name in ("loss", "calibration_error"):
        before = scaled[f"test/{name}_unscaled"]
        assert before == pytest.approx(plain[f"test/{name}"], rel=1e-5) and before > scaled[f"test/{name}"]
    checkpoint = torch.load("scaled/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["temperature"] == scaled["test/temperature"] != 1
    files = sorted(path.name for path in Path("scaled/checkpoints").iterdir())
    assert checkpoint["optimizer_states"] and files == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert not set(plain) & {"test/temperature", "test/loss_unscaled"}
    assert f"temperature: {scaled['test/temperature']:g}: loss" in said.out and "most confused: " in said.out
    frame = pd.read_csv("scaled/test/predictions.csv")
    assert (frame["confidence"] - pd.read_csv("plain/test/predictions.csv")["confidence"]).abs().max() > 0.01
    media = {path.name.rpartition("_")[0] for path in Path("scaled/wandb").rglob("media/images/test/*.png")}
    assert {name.partition("_")[0] for name in media} >= {"confusion", "reliability", "mistakes"}


@pytest.mark.slow
def test_a_sharded_network_has_a_temperature_and_no_heat() -> None:
    strategy = "trainer.strategy={_target_: imgcls.engine.ranks.FullyShardStrategy}"
    done = imgcls(
        "train",
        "trainer=ddp_cpu",
        strategy,
        "task.temperature=true",
        "logger=csv",
        "hydra.run.dir=two",
        *SHORT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no Grad-CAM (the network is sharded over processes)") == 1
    alone = imgcls("eval", "checkpoint=two", "hydra.run.dir=one")
    assert alone.returncode == 0, alone.stderr
    two, one = metrics(Path("two/test")), metrics(Path("one"))
    assert (
        two == pytest.approx(one, rel=1e-5, abs=1e-6)
        and two["test/temperature"] == one["test/temperature"] != 1
    )
    assert Path("one/mistakes.png").exists() and "Grad-CAM" not in alone.stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "classes"), [(390, 10), (1100, 100)])
def test_the_page_in_a_browser(width: int, classes: int, tmp_path: Path) -> None:
    """All pictures are shown, nothing is wider than the window, and the console has no error. A large
    confusion matrix leads to its file."""
    text = write(known(classes, 200, 3, 32, 0.2)[2], tmp_path)
    assert ('<a href="confusion_matrix.png"' in text) == (classes > 20)
    script = """<script>addEventListener("load", () => document.title = JSON.stringify({
        pictures: document.images.length,
        shown: [...document.images].filter(i => i.naturalWidth && i.width > 50).length,
        wide: document.documentElement.scrollWidth > innerWidth}))</script></body>"""
    (tmp_path / "index.html").write_text(text.replace("</body>", script))
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    command += [
        f"--user-data-dir={tmp_path}/profile",
        f"--window-size={width},900",
        f"file://{tmp_path}/index.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    assert json.loads(title) == {"pictures": 34, "shown": 34, "wide": False}
    assert "CONSOLE" not in done.stderr
