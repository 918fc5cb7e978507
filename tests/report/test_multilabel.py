"""The report of a test of several labels, from known predictions to pictures and a page."""

import csv
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.labels import SETS
from support.pages import HOSTILE, elements
from torch import Tensor
from torch.nn import functional as F

from imgcls.data.memory import MemoryImages
from imgcls.errors import UserError
from imgcls.report import figures
from imgcls.report.multilabel import MultiLabelReport
from imgcls.report.report import print_summary
from imgcls.spec import DataSpec

PROBABILITIES = torch.tensor([[0.9, 0.6, 0.1], [0.8, 0.2, 0.1], [0.3, 0.7, 0.2], [0.6, 0.1, 0.3]])
TARGETS = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])


def reported(
    probabilities: Tensor, targets: Tensor, thresholds: list[float], names: list[str], size: int = 8
) -> MultiLabelReport:
    losses = F.binary_cross_entropy(probabilities, targets.float(), reduction="none").mean(1)
    tested = {"indices": torch.arange(len(targets)), "targets": targets.byte(), "losses": losses}
    tested["probabilities"] = probabilities
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(targets), 3, size, size), generator=generator, dtype=torch.uint8)
    spec = DataSpec(names, 3, size, (0.5,), (0.5,))
    metrics = {"test/map": 0.5, "test/f1_micro": 0.6, "test/loss": 0.2}
    images = MemoryImages(pixels, targets)
    return MultiLabelReport.of(metrics, tested, images, spec, thresholds)


def by_hand() -> MultiLabelReport:
    return reported(PROBABILITIES, TARGETS, [0.5, 0.5, 0.25], ["cat", "dog", "fox"])


def many(labels: int, samples: int = 120, size: int = 32) -> MultiLabelReport:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(samples, labels, generator=generator) < torch.linspace(0.5, 0.05, labels)).long()
    targets[0] = 1
    logits = 3 * targets - 2 + torch.randn(samples, labels, generator=generator)
    return reported(logits.sigmoid(), targets, [0.4] * labels, [f"label {i}" for i in range(labels)], size)


def write(report: MultiLabelReport, folder: Path) -> str:
    report.write(folder)
    report.draw(folder)
    return (folder / "index.html").read_text()


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_tables_by_hand(tmp_path: Path) -> None:
    by_hand().write(tmp_path)
    head, *rows = table(tmp_path / "per_label.csv")
    assert head == [
        "label", "average_precision", "precision", "recall", "f1", "threshold", "support", "missed", "wrong",
    ]  # fmt: skip
    third, fifths = 2 / 3, 0.8
    expected = {"cat": [1, third, 1, fifths, 0.5, 2, 0, 1], "dog": [1, 1, third, fifths, 0.5, 3, 1, 0]}
    for name, *cells in rows[:2]:
        assert list(map(float, cells)) == pytest.approx(expected[name]), name
    assert rows[2] == ["fox", "", "0.0", "0.0", "0.0", "0.25", "0", "0", "1"]  # no image has it
    assert table(tmp_path / "predictions.csv")[1][:3] == ["0", "cat|dog", "cat|dog"]
    assert [row[1:3] for row in table(tmp_path / "predictions.csv")[2:]] == [
        ["cat|dog", "cat"], ["dog", "dog"], ["", "cat|fox"],
    ]  # fmt: skip
    true, predicted = (table(tmp_path / f"cooccurrence_{kind}.csv") for kind in ("true", "predicted"))
    assert true[0] == predicted[0] == ["", "cat", "dog", "fox"]
    numbers = [[float(cell) for row in rows[1:] for cell in row[1:]] for rows in (true, predicted)]
    assert numbers[0] == pytest.approx([1, 1, 0, third, 1, 0, 0, 0, 0])
    assert numbers[1] == pytest.approx([1, 0.5, 0, third, third, 0, 0, 0, 0])


def test_words_and_mistakes_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = by_hand()
    text = write(report, tmp_path)
    print_summary("Test", report, {})
    said = capsys.readouterr().out
    assert "weakest labels: cat (average precision 1.000), dog (average precision 1.000)\n" in said
    assert "most often missed: dog (1 of 3)\n" in said
    (first, *_), (second, *_) = report.mistakes[0].missed, report.mistakes[1].wrong
    assert [one.name for one in report.mistakes] == ["1", "3"]
    assert first[0] == "dog" and first[1] == pytest.approx(0.2) and report.mistakes[0].wrong == []
    assert second[0] == "cat" and second[1] == pytest.approx(0.6) and report.mistakes[1].missed == []
    assert [name for name, _ in report.mistakes[1].wrong] == ["cat", "fox"]
    assert "4 images, 3 labels,\n1.2 an image; 2 images with a wrong or missed label" in text
    assert "missed: <b>dog</b> 20%<br>" in text and "wrong: <b>cat</b> 60%<br>" in text


@pytest.mark.parametrize("labels", [2, 5, 80, 230])
def test_everything_is_drawn(labels: int, tmp_path: Path) -> None:
    report = many(labels)
    text = write(report, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"precision_recall.png", "cooccurrence.png"}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 150 and image.size[0] <= 2000
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 5
    assert text.count("data:image/png") == 2 + len(report.mistakes) and not re.search(
        r"https?:|<script|<link", text
    )
    assert ("100 of 230" in text) == (labels == 230)
    assert ('<a href="cooccurrence.png"' in text) == (labels > 20)
    assert text.count("<tr>") == 2 + 3 + min(labels, 100)


def test_nothing_wrong_and_nothing_there(tmp_path: Path) -> None:
    right = reported(TARGETS * 0.8 + 0.1, TARGETS, [0.5] * 3, ["cat", "dog", "fox"])
    text = write(right, tmp_path / "right")
    assert "Worst mistakes" not in text and "most often missed" not in right.in_words()
    none = reported(PROBABILITIES, TARGETS * 0, [0.95] * 3, ["cat", "dog", "fox"])
    text = write(none, tmp_path / "none")
    assert "Precision and recall" not in text and none.in_words() == {}


def test_the_curve_goes_through_its_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    report = many(5)
    for curve in report.curves():
        distances = np.hypot(curve.recall - curve.chosen[0], curve.precision - curve.chosen[1])
        assert distances.min() < 1e-9, curve.label
    found = [curve.average_precision for curve in report.curves()]
    assert found == sorted(found) and len(found) == 5
    figure = figures.draw_curves(report.curves())
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        f"{curve.label} {curve.average_precision:.2f}" for curve in report.curves()
    ]


def test_names_are_text_in_the_page(tmp_path: Path) -> None:
    pages = {}
    for name in ("plain", f"{HOSTILE}$x_1${{{{ 7*7 }}}}"):
        report = reported(PROBABILITIES, TARGETS, [0.5, 0.5, 0.25], [name, "dog", "fox"])
        report.predictions["name"] = name
        report.metrics[f"test/{name}"] = 1.0
        pages[name] = write(report, tmp_path)
    plain, hostile = map(elements, pages.values())
    assert [tag for tag, _ in plain] == [tag for tag, _ in hostile] and "&lt;img src=x" in pages[name]


def test_a_failed_picture_is_one_line(tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = by_hand()

    def picture(index: int) -> Tensor:
        raise UserError("a.jpg can't be read as an image\n(No such file)")

    monkeypatch.setattr(report.images, "picture", picture)
    monkeypatch.setattr(figures, "draw_curves", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        text = write(report, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "test report: no picture of 1 (a.jpg can't be read as an image (No such file))",
        "test report: no picture of 3 (a.jpg can't be read as an image (No such file))",
        "test report: no precision-recall curves (division by zero)",
    ]
    assert "Worst mistakes" not in text
    assert json.loads((tmp_path / "metrics.json").read_text()) == report.metrics


def test_tables_and_pictures_in_wandb(here: Callable[..., None]) -> None:
    here("train", *SETS, "trainer=cpu", "trainer.max_epochs=1", "logger=[csv,wandb]", "hydra.run.dir=run")
    media = Path("run/wandb")
    pictures = {path.name.rpartition("_")[0] for path in media.rglob("media/images/test/*.png")}
    assert {name.rpartition("_")[0] for name in pictures} >= {"precision_recall", "cooccurrence"}
    tables = list(media.rglob("media/table/test/*.json"))
    assert {path.name.partition("_")[0] for path in tables} == {"per", "worst"}
    content = json.loads(next(path for path in tables if path.name.startswith("per")).read_text())
    assert content["columns"][:2] == ["label", "average_precision"] and len(content["data"]) == 5


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "labels"), [(390, 5), (1100, 80)])
def test_the_page_in_a_browser(width: int, labels: int, tmp_path: Path) -> None:
    """All pictures are shown, and nothing is wider than the window."""
    text = write(many(labels), tmp_path)
    script = """<script>addEventListener("load", () => document.title = JSON.stringify({
        shown: [...document.images].filter(i => i.naturalWidth && i.width > 50).length,
        wide: document.documentElement.scrollWidth > innerWidth}))</script></body>"""
    (tmp_path / "index.html").write_text(text.replace("</body>", script))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900"]
    done = subprocess.run(
        [*command, f"file://{tmp_path}/index.html"], capture_output=True, text=True, timeout=120
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    assert json.loads(title) == {"shown": 18, "wide": False}
