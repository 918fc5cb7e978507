"""Likely label errors: planted ones are found by a network that has learnt, and are in a test's files."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.pages import elements

from imgcls.data.memory import MemoryImages
from imgcls.data.module import ImageDataModule
from imgcls.report import classification as reports
from imgcls.report import label_errors
from imgcls.report.label_errors import INSTALL, MOST, find_label_errors, reason_against
from imgcls.spec import DataSpec
from imgcls.tasks import classification as tasks

needs_cleanlab = pytest.mark.skipif(
    importlib.util.find_spec("cleanlab") is None, reason="the extra labels is not installed"
)
PLANTED = 30
Planted = dict[int, str]


@needs_cleanlab
def test_by_hand() -> None:
    """Of 12 images two have the label of the class that the network denies; the surer one comes first."""
    targets = np.array([0] * 6 + [1] * 6)
    of_one = np.array([0.1, 0.1, 0.2, 0.1, 0.95, 0.2, 0.9, 0.8, 0.9, 0.9, 0.02, 0.8], np.float32)
    probabilities = np.stack([1 - of_one, of_one], 1)
    names, predictions = np.array(["cat", "dog"]), pd.DataFrame({"name": [f"{i}.png" for i in range(12)]})
    predictions["target"], predictions["prediction"] = names[targets], names[probabilities.argmax(1)]
    predictions = predictions.assign(confidence=probabilities.max(1), index=range(12))
    table = find_label_errors(predictions, targets, probabilities).table
    assert table[["name", "given", "suggested", "index"]].values.tolist() == [
        ["10.png", "dog", "cat", 10],
        ["4.png", "cat", "dog", 4],
    ]
    assert table["given_probability"].tolist() == pytest.approx([0.02, 0.05])
    assert table["suggested_probability"].tolist() == pytest.approx([0.98, 0.95])


@needs_cleanlab
def test_a_weak_network_is_doubted() -> None:
    """Its answers are drawn at random, and the labels are as right as can be."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 4, 400)
    probabilities = generator.dirichlet(np.ones(4), 400).astype(np.float32)
    predictions = pd.DataFrame({"name": "", "target": targets, "prediction": probabilities.argmax(1)})
    found = find_label_errors(predictions.assign(confidence=0.5, index=0), targets, probabilities)
    share = len(found.table) / 400
    assert share > 0.3
    assert found.doubt.startswith(f"the network may be too weak to tell: it denies {share:.0%} of the labels")
    assert label_errors.doubt_about(100, 1000) == "" != label_errors.doubt_about(101, 1000)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    """The digits, of whose test split some get a wrong label; returns their names and right labels."""
    wrong, setup = dict[int, str](), ImageDataModule.setup

    def with_errors(data: ImageDataModule, stage: str | None = None) -> None:
        first = not data.sets
        setup(data, stage)
        if first:
            generator, targets = torch.Generator().manual_seed(0), data.sets["test"].targets
            chosen = torch.randperm(len(targets), generator=generator)[:PLANTED]
            wrong.update({i: data.spec.class_names[int(targets[i])] for i in chosen.tolist()})
            targets[chosen] = (targets[chosen] + torch.randint(1, 10, (PLANTED,), generator=generator)) % 10

    monkeypatch.setattr(ImageDataModule, "setup", with_errors)
    return wrong


@needs_cleanlab
def test_planted_errors_are_listed(
    planted: Planted, train: Callable[..., Any], here: Callable[..., None]
) -> None:
    train("data=digits", "trainer=cpu", "logger=csv", "trainer.max_epochs=5", "hydra.run.dir=run")
    table = pd.read_csv("run/test/label_errors.csv", dtype={"given": str, "suggested": str})
    listed = set(table["index"])
    assert len(planted) == PLANTED and len(listed & set(planted)) >= 0.8 * PLANTED
    assert len(listed - set(planted)) <= 0.5 * PLANTED
    suggested = dict(zip(table["index"], table["suggested"], strict=True))
    assert sum(suggested.get(i) == right for i, right in planted.items()) >= 0.8 * PLANTED
    page, first = Path("run/test/index.html").read_text(), table.iloc[0]
    assert f"{len(table)} images whose label the network denies" in page
    assert f"given: <b>{first['given']}, " in page and f"suggested: <b>{first['suggested']}, " in page
    assert len([tag for tag, _ in elements(page) if tag == "img"]) >= 16
    # another split, whose labels are right
    here("eval", "checkpoint=run", "split=train", "trainer.accelerator=cpu", "hydra.run.dir=tested")
    assert len(pd.read_csv("tested/label_errors.csv")) <= 0.02 * 1150


def test_without_cleanlab(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_errors, "reason_against", lambda *_: INSTALL)
    for module in (tasks, reports):
        monkeypatch.setattr(module, "reason_against", lambda *_: INSTALL)
    train("data=digits", "trainer=cpu", "logger=csv", "trainer.max_epochs=1", "hydra.run.dir=run")
    assert not Path("run/test/label_errors.csv").exists()
    page = Path("run/test/index.html").read_text()
    assert "cleanlab finds them, and is not installed; in the clone: pip install" in page


def test_when_they_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_errors.importlib.util, "find_spec", lambda name: None)
    assert reason_against(10, 10) == INSTALL
    monkeypatch.setattr(label_errors.importlib.util, "find_spec", lambda name: object())
    assert reason_against(MOST // 1000, 1000) == ""
    assert reason_against(MOST // 1000 + 1, 1000).startswith("not looked for: 100,001 × 1,000 probabilities")


def test_a_search_that_fails_is_said_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test had kept what the search needs: cleanlab takes no set of one class, for example."""

    def failing(*_: object) -> None:
        raise ValueError("Labels must contain at least 2 classes")

    monkeypatch.setattr(reports, "find_label_errors", failing)
    kept = {"indices": [0], "targets": [1], "predictions": [0], "confidences": [0.7]}
    tested = {name: torch.tensor(value) for name, value in kept.items()}
    tested["probabilities"] = torch.tensor([[0.7, 0.3]])
    images = MemoryImages(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([1]))
    spec = DataSpec(("a", "b"), 1, 8, [0.5], [0.5])
    report = reports.ClassificationReport.of({}, tested, images, spec, lambda *_: torch.empty(0))
    assert report.label_errors.note == "not found: the log says why"
