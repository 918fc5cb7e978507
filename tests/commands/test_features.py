"""imgcls eval with knn= and features=: nearest neighbours, and files that probes are made from."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.neighbors import KNeighborsClassifier
from support.checkpoints import write_checkpoint
from support.command import ROOT

import imgcls
from imgcls.backbones.build import build_network
from imgcls.commands import features
from imgcls.commands.features import NearestNeighbours, neighbours
from imgcls.data.digits import Digits

CNN = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
Arrays = dict[str, np.ndarray]


def votes(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / 0.07)


def scikit_learns(found: Arrays, k: int) -> KNeighborsClassifier:
    model = KNeighborsClassifier(k, weights=votes, metric="cosine", algorithm="brute")
    return model.fit(found["train_features"], found["train_targets"])


@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_shares_of_votes_are_scikit_learns(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    memory, queries = torch.rand(40, 6, generator=generator), torch.rand(9, 6, generator=generator)
    classes = torch.arange(40) % 3
    network = NearestNeighbours(torch.nn.Identity(), "", k, memory, classes, 4)
    shares = network(queries).exp()
    expected = scikit_learns({"train_features": memory.numpy(), "train_targets": classes.numpy()}, k)
    np.testing.assert_allclose(shares[:, :3], expected.predict_proba(queries), atol=2e-6)
    torch.testing.assert_close(shares[:, 3], torch.full((9,), 1e-6))
    assert len(NearestNeighbours(torch.nn.Identity(), "", 99, memory, classes, 3)(queries)) == 9


@pytest.fixture
def checkpoint() -> str:
    write_checkpoint(Path("net.ckpt"), Digits().spec, "data=digits", "backbone.width=4")
    return "checkpoint=net.ckpt"


def test_a_report_of_neighbours_and_a_file_of_features(checkpoint: str, here: Callable[..., None]) -> None:
    """What goes into the head of an untrained network tells digits apart, which its logits do not."""
    here("eval", checkpoint, "hydra.run.dir=head")
    here("eval", checkpoint, "knn=5", "hydra.run.dir=near", "metrics=[mcc]")
    here("eval", checkpoint, "features=features.npz")
    with np.load("features.npz") as file:
        found = dict(file)
    assert found["train_features"].shape == (1295, 16) and found["train_features"].dtype == np.float32
    assert [len(found[f"{split}_names"]) for split in ("train", "val", "test")] == [1295, 143, 359]
    assert tuple(found["class_names"]) == Digits().spec.class_names
    top1 = scikit_learns(found, 5).score(found["test_features"], found["test_targets"])
    here("eval", checkpoint, "knn=5", "hydra.run.dir=double", "trainer.precision=64-true")
    assert json.loads(Path("double/metrics.json").read_text())["test/top1"] == pytest.approx(top1, abs=0.003)
    head, near = (json.loads(Path(run, "metrics.json").read_text()) for run in ("head", "near"))
    assert near.keys() == head.keys() | {"test/mcc"} and head["test/top1"] < 0.3
    assert near["test/top1"] == pytest.approx(top1, abs=0.003) and top1 > 0.6
    assert {"index.html", "confusion_matrix.csv", "mistakes.png"} <= {p.name for p in Path("near").iterdir()}
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "fine_tuning.md").read_text(), re.DOTALL)
    (probe,) = (text for text in snippets if "LogisticRegression" in text)
    names: dict[str, Arrays] = {}
    exec(probe.replace("logspace(-6, 2, 20)", "logspace(-4, 0, 3)"), names)
    assert names["best"].score(names["test"], found["test_targets"]) > 0.5  # type: ignore[attr-defined]


def test_a_task_without_classes_of_its_own() -> None:
    class Projection(imgcls.Task):
        def outputs(self) -> int:
            return 3

        def compute(self, batch: imgcls.Batch, stage: imgcls.Stage) -> imgcls.Outputs:
            raise AssertionError

    data = Digits(batch_size=200)
    data.setup_test("val")
    task = Projection(asdict(data.spec), CNN).eval()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(imgcls.UserError, match="knn=144: train has 143 images; expected at most"):
        neighbours(task, data, trainer, 144)
    found = neighbours(task, data, trainer, 1)
    images = data.sets["test"].__getitems__(range(20))
    with torch.inference_mode():
        assert torch.equal(found(images.images).argmax(1), images.targets)  # each is its own neighbour
    data.sets["test"].targets = torch.zeros(143)
    with pytest.raises(imgcls.UserError, match="knn=1: neighbours vote for one class, the data has measures"):
        neighbours(task, data, trainer, 1)


def test_published_weights_of_other_classes(here: Callable[..., None], folder: Path) -> None:
    torch.save(build_network(CNN, 1000, 3, 8).state_dict(), "net.pth")
    given = ["eval", "backbone=simple_cnn", "backbone.width=4", "backbone.weights=net.pth"]
    given += ["data=imagefolder", f"data.root={folder}", "data.image_size=8", "data.num_workers=0"]
    here(*given, "knn=3", "hydra.run.dir=near")
    assert 0 <= json.loads(Path("near/metrics.json").read_text())["test/top1"] <= 1
    here(*given, "features=features.npz")
    with np.load("features.npz") as file:
        assert sorted({*file["train_targets"]}) == [0, 1, 2] and len(file["test_features"]) == 3


def test_what_is_refused(checkpoint: str, said: Callable[..., str]) -> None:
    Path("there.npz").touch()
    for words, expected in {
        "knn=5 split=train": "split=train: with knn the train split is the memory",
        "knn=0": "knn=0: input should be greater than or equal to 1",
        "features=there.npz": "features=there.npz: there.npz is there already; give another name",
        "features=features.csv": "features=features.csv: expected a file name that ends in .npz",
        "features=": "features=: string should have at least 1 character",
        "features=new.npz knn=5": "features=FILE has all splits and tests nothing",
    }.items():
        assert expected in said("eval", checkpoint, *words.split())
