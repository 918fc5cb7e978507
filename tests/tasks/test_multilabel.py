"""MultiLabelClassifier: targets, measures and thresholds, and all that the command does with it."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn
from support.command import ROOT, imgcls
from support.composed import composed
from support.labels import NAMES, SETS, Squares
from support.runs import assert_same_run
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchmetrics import classification as torchmetrics

from imgcls.augment.batch import BatchAugment
from imgcls.augment.settings import Augment
from imgcls.config.check import typed
from imgcls.data.batch import Batch
from imgcls.engine.signals import STOPPED
from imgcls.errors import UserError
from imgcls.report.calibration import best_thresholds
from imgcls.tasks.measures import LabelEvaluation, LabelScores
from imgcls.tasks.multilabel import MultiLabelClassifier
from imgcls.tasks.task import load_checkpoint

SHORT = (*SETS, "trainer=cpu", "logger=csv", "trainer.max_epochs=3")
LABELS = "imgcls.tasks.losses.LabelCrossEntropy"


def small(**given: Any) -> MultiLabelClassifier:
    torch.manual_seed(0)
    backbone = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
    given = {"loss": {"_target_": LABELS}, **given}
    return MultiLabelClassifier(asdict(Squares().spec), backbone, **given)


def drawn(count: int = 60, labels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(2, (count, labels), generator=generator)
    return targets + torch.randn(count, labels, generator=generator), targets


def batch(targets: Tensor) -> Batch:
    images = torch.randint(0, 256, (len(targets), 1, 8, 8), dtype=torch.uint8)
    return Batch(images, targets, torch.arange(len(targets)), torch.ones(len(targets)).bool())


# What is measured


@pytest.mark.parametrize("absent", [None, 3])
def test_as_scikit_learn_and_torchmetrics(absent: int | None) -> None:
    """Micro over all labels; macro means over those that a sample has."""
    logits, targets = drawn()
    kept = [label for label in range(5) if label != absent]
    if absent is not None:
        targets[:, absent] = 0
    evaluation, given = LabelEvaluation(5), logits > 0
    for rows in torch.arange(60).split(25):
        evaluation.update(logits[rows], targets[rows])
    found = {name: float(value) for name, value in evaluation.compute().items()}
    expected = {
        "map": sklearn.average_precision_score(targets[:, kept], logits[:, kept], average="macro"),
        "f1_micro": sklearn.f1_score(targets, given, average="micro"),
        "f1_macro": sklearn.f1_score(targets[:, kept], given[:, kept], average="macro"),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.keys() == evaluation.better.keys()
    if absent is None:
        theirs = {
            "map": torchmetrics.MultilabelAveragePrecision(5),
            "f1_micro": torchmetrics.MultilabelF1Score(5, average="micro"),
            "f1_macro": torchmetrics.MultilabelF1Score(5, average="macro"),
        }
        values = {name: float(metric(logits.sigmoid(), targets)) for name, metric in theirs.items()}
        assert found == pytest.approx(values, abs=1e-6)
    evaluation.reset()
    evaluation.update(logits[:9], torch.zeros(9, 5).long())
    assert {name: float(value) for name, value in evaluation.compute().items()} == dict.fromkeys(found, 0.0)


def test_labels_are_counted_above_their_thresholds() -> None:
    logits, targets = drawn()
    scores = LabelScores(5)
    scores.thresholds.copy_(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    scores.update(logits, targets)
    given = logits.sigmoid() > torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    assert float(scores.compute()["f1_macro"]) == pytest.approx(
        sklearn.f1_score(targets, given, average="macro")
    )
    assert "thresholds" not in scores.state_dict()


def test_the_loss_is_plain_and_classes_are_one_label_each() -> None:
    module = small(loss={"_target_": "imgcls.tasks.losses.AsymmetricLoss"}).eval()
    given = batch(torch.tensor([0, 4, 2]))
    outputs = module.compute(given, "val")
    one_hot = F.one_hot(given.targets, 5)
    expected = F.binary_cross_entropy_with_logits(module(given.images), one_hot.float())
    torch.testing.assert_close(outputs.loss, expected)
    assert torch.equal(outputs.targets, one_hot)
    again = module.compute(given._replace(targets=one_hot), "val")
    assert torch.equal(again.loss, outputs.loss) and torch.equal(again.targets, one_hot)


def test_a_training_step_reads_nothing_back() -> None:
    mixing = {"mixup": {"probability": 0.4}, "cutmix": {"probability": 0.4}, "crop": "padded"}
    module = small(augment=mixing, loss={"_target_": LABELS, "pos_weight": [2.0] * 5})
    given = batch(drawn(8)[1])

    def operators() -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            module.training_step(given, 0).backward()
            module.val_metrics.update(module.compute(given, "val"), module.measured)
        return {event.key for event in profiled.key_averages()}

    operators()
    seen = operators()
    assert "aten::convolution" in seen and "aten::_local_scalar_dense" not in seen


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_mixes_the_rows(kind: str) -> None:
    """An image of a constant shows its own share in its pixels, and its labels have that share too."""
    augment = BatchAugment(typed({kind: {"probability": 1.0}}, Augment, "augment"), Squares().spec)
    targets = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 1]] * 4)
    images = torch.tensor([1.0, 0.0] * 4).view(8, 1, 1, 1).expand(8, 1, 8, 8)
    torch.manual_seed(0)
    mixed, shares = augment.mix(images, targets)
    first = mixed.mean((1, 2, 3))[:, None]  # the share of the first kind
    torch.testing.assert_close(shares, first * targets[0] + (1 - first) * targets[1])
    assert ((first > 0.01) & (first < 0.99)).any()
    torch.manual_seed(0)
    one = augment.mix(images, torch.tensor([0, 4] * 4))
    torch.manual_seed(0)
    again = augment.mix(images, F.one_hot(torch.tensor([0, 4] * 4), 5))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])


# Thresholds


def test_the_best_thresholds_by_trying_all() -> None:
    logits, targets = drawn(200)
    scores = (8 * logits).round().div(8).sigmoid()  # many of them are equal
    found = best_thresholds(scores, targets)
    for label, threshold in enumerate(found):
        truth, mine = targets[:, label], scores[:, label]
        tried = [sklearn.f1_score(truth, mine >= score) for score in mine.unique().tolist()]
        assert sklearn.f1_score(truth, mine > threshold) == pytest.approx(max(tried))
        assert (mine - threshold).abs().min() > 0.001  # between two scores


def test_thresholds_at_the_edges() -> None:
    one = torch.tensor(1.0)
    scores = torch.stack(
        [
            torch.tensor([0.9, 0.2, 0.1]),  # no sample has this label
            torch.tensor([torch.nan, 0.2, 0.1]),
            torch.stack([one, one, torch.nextafter(one, torch.tensor(0.0))]),
            torch.tensor([1e-40, 0.0, 0.0]),
            torch.tensor([0.3, 0.3, 0.3]),  # all of them, or none
        ],
        1,
    )
    targets = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    found = best_thresholds(scores, targets)
    assert found[:2] == [0.5, 0.5] and all(0 < threshold < 1 for threshold in found)
    given = scores > torch.tensor(found)
    assert given[:, 2].tolist() == [True, True, False] and given[:, 4].all()


@pytest.mark.parametrize("wrong", [[0.5] * 4, [0.5] * 4 + [1.0], [0.5] * 4 + [float("nan")], 0.5, ["a"] * 5])
def test_thresholds_of_a_checkpoint_are_checked(wrong: Any) -> None:
    module = small()
    module.on_load_checkpoint({"thresholds": [0.1, 0.2, 0.3, 0.4, 0.6]})
    assert module.thresholds.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.6])
    with pytest.raises(UserError, match=r"thresholds are .*; expected 5 numbers between 0 and 1"):
        module.on_load_checkpoint({"thresholds": wrong})
    module.on_fit_start()
    assert module.thresholds.tolist() == [0.5] * 5
    module.on_load_checkpoint({})
    assert module.thresholds.tolist() == [0.5] * 5


def test_answers_are_above_the_thresholds() -> None:
    module, images = small().eval(), batch(torch.arange(5)).images
    probabilities = module(images).sigmoid()
    thresholds = probabilities.median(0).values  # two of the five images have each label
    module.set_thresholds(thresholds.tolist())
    answers = module.answers(images)
    assert answers.several and answers.labels is not None
    for row, labels, numbers in zip(probabilities, answers.labels, answers.numbers, strict=True):
        best = row.argsort(descending=True)
        assert labels == [NAMES[i] for i in best.tolist() if row[i] > thresholds[i]]
        assert numbers.tolist() == [row[NAMES.index(name)].item() for name in labels]
    assert sum(map(len, answers.labels)) == 10
    assert module.answers(images, 1).labels == [labels[:1] for labels in answers.labels]
    module.set_thresholds([0.999999] * 5)
    module.tta = "flip"
    assert module.answers(images).labels == [[]] * 5


# Config


@pytest.mark.parametrize(
    ("given", "loss", "metric"),
    [
        ((), "LabelCrossEntropy", "val/map"),
        (("loss=asymmetric",), "AsymmetricLoss", "val/map"),
        (("optimized_metric=val/f1_macro",), "LabelCrossEntropy", "val/f1_macro"),
    ],
)
def test_the_task_chooses_loss_and_metric(given: tuple[str, ...], loss: str, metric: str) -> None:
    config = composed("task=multilabel", *given)
    assert config["task"]["_target_"].endswith(".MultiLabelClassifier") and config["loss"][
        "_target_"
    ].endswith(loss)
    assert config["optimized_metric"] == metric
    plain = composed()
    assert plain["optimized_metric"] == "val/top1" and plain["loss"]["_target_"].endswith("CrossEntropyLoss")


def test_an_experiment_chooses_task_and_loss(here: Callable[..., None], capsys: Any) -> None:
    Path("conf/experiment").mkdir(parents=True)
    overrides = "defaults: [{override /task: multilabel}, {override /loss: asymmetric}]"
    text = f"# @package _global_\n{overrides}\noptimized_metric: val/f1_micro\nloss: {{gamma_neg: 2.0}}\n"
    Path("conf/experiment/mine.yaml").write_text(text)
    here("train", "--config-dir=conf", "experiment=mine", "--cfg", "job")
    said = capsys.readouterr().out
    assert "MultiLabelClassifier" in said and "AsymmetricLoss" in said
    assert "gamma_neg: 2.0" in said and "optimized_metric: val/f1_micro" in said


def test_balanced_weights() -> None:
    loss = {"_target_": LABELS, "pos_weight": "balanced"}
    module = small(loss=loss, class_counts=[50, 20, 10, 1, 100], train_images=100)
    assert module.loss.get_buffer("pos_weight").tolist() == pytest.approx([1, 4, 9, 99, 0.01])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            (*SETS, "loss=cross_entropy"),
            "loss: CrossEntropyLoss is for one class an image; expected loss=multilabel",
        ),
        (
            (*SETS, "loss.pos_weight=[1.0,2.0]"),
            "loss.pos_weight=[1.0, 2.0]: expected 5 numbers, one for each label",
        ),
        (SETS[1:], "the data has several labels for an image; expected one class"),
        ((*SETS, "optimized_metric=val/top1"), "optimized_metric=val/top1: no such metric is logged"),
        ((*SETS, "callbacks=distillation", "callbacks.distillation.teacher=no"), "no: there is no such"),
    ],
)
def test_mistakes_are_one_line(said: Callable[..., str], arguments: tuple[str, ...], words: str) -> None:
    assert words in said("train", "logger=csv", *arguments)


def test_inspect_refuses_several_labels(said: Callable[..., str]) -> None:
    message = said("inspect", "data=digits", "data._target_=support.labels.Squares")
    assert message.endswith(
        "has several labels for an image; imgcls inspect expects data with one class for each"
    )


# As used


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def values(path: str) -> dict[str, float]:
    return dict(json.loads(Path(path, "metrics.json").read_text()))


def test_train_eval_predict_export(
    here: Callable[..., None], said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    hamming = "+metrics.hamming._target_=torchmetrics.classification.MultilabelHammingDistance"
    here("train", *SHORT, hamming, "hydra.run.dir=run")
    content = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    thresholds = content["thresholds"]
    assert (
        f"thresholds: {min(thresholds):.3g} to {max(thresholds):.3g}, fitted on " in capsys.readouterr().out
    )

    # The test uses the thresholds, and validation a half of each.
    data = Squares(batch_size=64)
    data.setup()
    task, _ = load_checkpoint(Path("run/checkpoints/best.ckpt"))
    found, names = (
        values("run/test"),
        [f"test/{name}" for name in ("map", "f1_micro", "f1_macro", "loss", "hamming")],
    )
    assert list(found) == names
    for split, limits in (("test", torch.tensor(thresholds)), ("val", torch.full((5,), 0.5))):
        held = data.sets[split].__getitems__(range(len(data.sets[split])))
        with torch.no_grad():
            probabilities = task(held.images).sigmoid()
        given, truth = probabilities > limits, held.targets
        expected = {
            "map": sklearn.average_precision_score(truth, probabilities, average="macro"),
            "f1_micro": sklearn.f1_score(truth, given, average="micro"),
            "f1_macro": sklearn.f1_score(truth, given, average="macro"),
            "loss": F.binary_cross_entropy(probabilities, truth.float()).item(),
            "hamming": sklearn.hamming_loss(truth, probabilities > 0.5),
        }
        best = max(rows("run/metrics.csv"), key=lambda row: float(row["val/map"]))
        measured = found if split == "test" else {k: float(best[k]) for k in best if k.startswith("val/")}
        for name, value in expected.items():
            assert measured[f"{split}/{name}"] == pytest.approx(value, abs=1e-5), (split, name)
        if split == "val":
            assert thresholds == best_thresholds(probabilities, truth)
    assert found["test/f1_micro"] != pytest.approx(values_at_half(task, data), abs=1e-3)

    # The same again; labels in another order; some of them; an unknown one.
    common = ("eval", "checkpoint=run", "trust=[support]")
    here(*common, "hydra.run.dir=again")
    assert values("again") == found
    here(*common, "+data.names=[owl,hen,fox,dog,cat]", "hydra.run.dir=turned")
    assert values("turned").keys() == found.keys()
    assert rows("turned/per_label.csv")[0]["label"] == "cat"
    capsys.readouterr()
    here(*common, "+data.names=[hen,cat]", "split=all", "hydra.run.dir=some")
    assert "the test split has no image of 3 of 5 classes (dog, fox, owl)" in capsys.readouterr().out
    table = {row["label"]: row for row in rows("some/per_label.csv")}
    mean = np.mean([float(table[name]["average_precision"]) for name in ("cat", "hen")])
    assert values("some")["test/map"] == pytest.approx(mean) and table["dog"]["average_precision"] == ""
    assert "the data has the class 'newt', which the checkpoint does not know" in said(
        *common, "+data.names=[cat,newt]", "split=all"
    )

    # Pictures of the test, as files.
    expected_rows = rows("run/test/predictions.csv")
    for number in range(12):
        image = data.sets["test"].picture(number)[0].numpy()
        Path("pictures").mkdir(exist_ok=True)
        Image.fromarray(image).save(f"pictures/{number:02}.png")
    predicting = ("predict", "checkpoint=run", "source=pictures", "num_workers=0")
    here(*predicting, "out=p.csv")
    predicted = rows("p.csv")
    for line, expected_row in zip(predicted, expected_rows[:12], strict=True):
        assert set(line["labels"].split("|")) == set(expected_row["predictions"].split("|"))
        sizes = [float(number) for number in line["probabilities"].split("|") if number]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(line["labels"].split("|")) * bool(
            sizes
        )
    assert any(not row["labels"] for row in predicted) and any("|" in row["labels"] for row in predicted)
    here(*predicting, "out=p.jsonl", "top_k=1", "tta=five")
    assert {len(json.loads(line)["labels"]) for line in Path("p.jsonl").read_text().splitlines()} == {0, 1}

    here("export", "checkpoint=run", "trust=[support]", "format=torch_export", "out=net.pt2")
    files = {"metadata.json": ""}
    program: Any = torch.export.load("net.pt2", extra_files=files)
    facts = {name: json.loads(value) for name, value in json.loads(files["metadata.json"]).items()}
    assert facts["activation"] == "sigmoid" and facts["thresholds"] == thresholds
    held = data.sets["test"].__getitems__(range(12))
    with torch.no_grad():
        given = program.module()(held.images).sigmoid() > torch.tensor(facts["thresholds"])
    assert ["|".join(np.array(NAMES)[row]) for row in given] == [
        row["predictions"] for row in expected_rows[:12]
    ]


def values_at_half(task: Any, data: Squares) -> float:
    held = data.sets["test"].__getitems__(range(len(data.sets["test"])))
    with torch.no_grad():
        return float(sklearn.f1_score(held.targets, task(held.images) > 0, average="micro"))


def test_classes_train_as_labels(here: Callable[..., None]) -> None:
    """The digits, with a frozen body, averaged weights and mixing; then their test again."""
    given = ("finetune=gradual", "callbacks=[ema]", "augment=mix", "loss=asymmetric", "logger=csv")
    short = ("trainer=cpu", "trainer.max_epochs=2", "trainer.limit_train_batches=3", "task.thresholds=false")
    here("train", "task=multilabel", *given, *short, "hydra.run.dir=run")
    assert values("run/test")["test/map"] > 0.1
    assert "thresholds" not in torch.load("run/checkpoints/best.ckpt", weights_only=True)
    here("eval", "checkpoint=run", "hydra.run.dir=again")
    assert values("again") == values("run/test")


def test_resumed_within_an_epoch_to_the_same_bits(train: Callable[..., Any]) -> None:
    options = (*SHORT, "augment=mix", "data.fraction=0.9", "loss.pos_weight=balanced", "callbacks=[ema]")
    assert train(*options, "hydra.run.dir=whole") is None
    assert train(*options, "hydra.run.dir=cut", stop=6) == STOPPED
    assert train("resume=cut") is None
    assert_same_run(Path("whole"), Path("cut"))
    first, second = (
        torch.load(f"{run}/checkpoints/best.ckpt", weights_only=True) for run in ("whole", "cut")
    )
    assert first["thresholds"] == second["thresholds"] != [0.5] * 5


@pytest.mark.slow
def test_two_processes_measure_as_one() -> None:
    path = f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"
    options = (
        *SETS,
        "trainer=ddp_cpu",
        "logger=csv",
        "trainer.max_epochs=2",
        "+data.count=403",
        "hydra.run.dir=two",
    )
    done = imgcls("train", *options, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("thresholds: ") == 1
    done = imgcls("eval", "checkpoint=two", "trust=[support]", "hydra.run.dir=one", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert values("two/test") == pytest.approx(values("one"), rel=1e-6)
    one, two = (rows(f"{folder}/predictions.csv") for folder in ("one", "two/test"))
    assert [(row["name"], row["predictions"]) for row in one] == [
        (row["name"], row["predictions"]) for row in two
    ]
