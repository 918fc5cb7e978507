"""What is measured, beside scikit-learn and beside a count by hand."""

import re
from typing import Any

import pytest
import torch
from sklearn import metrics as sklearn
from support.composed import composed
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchmetrics import Metric
from torchmetrics import classification as torchmetrics

from imgcls.data.batch import Batch
from imgcls.errors import UserError
from imgcls.report.figures import reliability
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.measures import Evaluation, Gathered, MeanLoss
from imgcls.tasks.metrics import Outputs
from imgcls.tasks.multilabel import MultiLabelClassifier


def batches(classes: int, count: int = 3, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (2 * torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator))
        for n in (40, 64, 7)[:count]
    ]


def measured(given: list[tuple[Tensor, Tensor]], classes: int) -> dict[str, float]:
    collection = Evaluation(classes)
    for logits, targets in given:
        collection.update(logits, targets)
    return {name: float(value) for name, value in collection.compute().items()}


def calibration_error(logits: Tensor, targets: Tensor, bins: int = 15) -> float:
    confidence, predicted = logits.softmax(1).max(1)
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            gap = (predicted[inside] == targets[inside]).float().mean() - confidence[inside].mean()
            total += float(gap.abs()) * int(inside.sum()) / len(targets)
    return total


@pytest.mark.parametrize("classes", [2, 5, 6, 12])
def test_as_scikit_learn(classes: int) -> None:
    given = batches(classes)
    logits, targets = torch.cat([l for l, _ in given]), torch.cat([t for _, t in given])  # noqa: E741
    predicted = logits.argmax(1)
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
        targets, predicted, average="macro", zero_division=0
    )
    expected = {
        "top1": sklearn.accuracy_score(targets, predicted), "precision": precision, "recall": recall,
        "f1": f1, "calibration_error": calibration_error(logits, targets),
    }  # fmt: skip
    if classes > 5:
        expected["top5"] = sklearn.top_k_accuracy_score(targets, logits, k=5, labels=range(classes))
    assert measured(given, classes) == pytest.approx(expected, abs=1e-5)


def test_top5_is_not_taken_for_top1() -> None:
    right = torch.arange(8)
    wrong = (right + 1) % 8
    logits = 5 * nn.functional.one_hot(right, 8).float() + 0.1 * nn.functional.one_hot(wrong, 8)
    values = measured([(logits, right), (logits, wrong)], 8)
    assert values["top1"] == 0.5
    assert values["top5"] == 1.0


def test_calibration_by_hand() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]).log()
    values = measured([(logits, torch.tensor([0, 1, 0, 1]))], 2)
    assert values["calibration_error"] == pytest.approx((2 * abs(0.5 - 0.9) + 0.3 + 0.4) / 4, abs=1e-5)


def test_a_confidence_of_one_lies_in_the_last_range() -> None:
    """The error is what the reliability diagram shows: the gaps of its ranges, weighted by their shares."""
    confidences, right = torch.tensor([1.0, 1.0, 0.95, 0.97]), torch.tensor([True, False, True, True])
    logits = torch.stack([confidences, 1 - confidences], 1).log()
    drawn = reliability(logits.softmax(1)[:, 0].numpy(), right.numpy())
    expected = (drawn["share"] * (drawn["accuracy"] - drawn["confidence"]).abs()).sum()
    assert measured([(logits, (~right).long())], 2)["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_calibration_of_small_logits() -> None:
    logits = torch.tensor([[0.2, 0.8, 0.5], [0.9, 0.1, 0.3]])
    targets = torch.tensor([1, 2])
    values = measured([(logits, targets)], 3)
    assert values["calibration_error"] == pytest.approx(calibration_error(logits, targets), abs=1e-5)


@pytest.mark.parametrize("classes", [5, 6, 40])
def test_as_torchmetrics(classes: int) -> None:
    """Also where a class is never there, or never predicted, or neither."""
    settings: dict[str, Any] = {"num_classes": classes, "average": "macro", "validate_args": False}
    theirs: dict[str, Metric] = {
        "top1": torchmetrics.MulticlassAccuracy(classes, average="micro"),
        "precision": torchmetrics.MulticlassPrecision(**settings),
        "recall": torchmetrics.MulticlassRecall(**settings),
        "f1": torchmetrics.MulticlassF1Score(**settings),
        "calibration_error": torchmetrics.MulticlassCalibrationError(classes, n_bins=15),
    }
    if classes > 5:
        theirs["top5"] = torchmetrics.MulticlassAccuracy(classes, average="micro", top_k=5)
    given = [
        (logits.index_fill(1, torch.tensor([1, 3]), -9.0), t.clamp_min(3)) for logits, t in batches(classes)
    ]
    for logits, targets in given:
        for metric in theirs.values():
            metric.update(logits.softmax(1), targets)
    expected = {name: float(metric.compute()) for name, metric in theirs.items()}
    assert measured(given, classes) == pytest.approx(expected, abs=1e-6)
    assert set(expected) == set(Evaluation(classes).better)


def test_not_a_number_is_wrong() -> None:
    values = measured([(torch.full((4, 8), torch.nan), torch.tensor([7, 6, 5, 4]))], 8)
    assert values["top1"] == 0.0


def test_reset() -> None:
    collection = Evaluation(6)
    collection.update(*batches(6, 1)[0])
    collection.compute()
    collection.reset()
    given = batches(6, 2, seed=1)
    for batch in given:
        collection.update(*batch)
    assert {name: float(value) for name, value in collection.compute().items()} == pytest.approx(
        measured(given, 6)
    )


def test_mean_loss_counts_samples() -> None:
    mean = MeanLoss()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute() == 2.0
    mean.reset()
    mean.update(torch.tensor(7.0), 2)
    assert mean.compute() == 7.0


def test_predictions_are_in_the_order_of_the_set() -> None:
    predictions, classifier = Gathered(), small_classifier()
    logits = torch.randn(7, 4)
    targets, order = torch.arange(7) % 4, torch.tensor([5, 2, 0, 6, 3, 1, 4])
    for part in order.split(3):
        outputs = Outputs(torch.tensor(0.0), logits[part], targets[part])
        predictions.update(part, classifier.predictions(outputs))
    found = predictions.compute()
    confidences, predicted = logits.softmax(1).max(1)
    assert found["indices"].tolist() == list(range(7))
    assert torch.equal(found["targets"], targets)
    assert torch.equal(found["predictions"], predicted)
    torch.testing.assert_close(found["confidences"], confidences)
    assert {name: value.dtype for name, value in found.items()} == {
        "indices": torch.int64, "targets": torch.int64, "predictions": torch.int64,
        "confidences": torch.float32,
    }  # fmt: skip
    predictions.reset()
    predictions.update(torch.tensor([1, 0]), {"targets": targets[:2]})
    assert predictions.compute()["indices"].tolist() == [0, 1]


def test_a_test_of_one_sample() -> None:
    """torchmetrics makes scalars of values with one element."""
    predictions = Gathered()
    predictions.update(torch.tensor([0]), {"targets": torch.tensor([2]), "outputs": torch.tensor([[0.5]])})
    shapes = {name: tuple(value.shape) for name, value in predictions.rows().items()}
    assert shapes == {"indices": (1,), "targets": (1,), "outputs": (1, 1)}


def small_classifier(**given: Any) -> ImageClassifier:
    spec = {"class_names": [str(i) for i in range(6)], "channels": 1, "image_size": 8, "mean": [0.5]}
    backbone = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
    return ImageClassifier(
        {**spec, "std": [0.5]}, backbone, {"_target_": "torch.nn.CrossEntropyLoss"}, **given
    )


def operators(classifier: ImageClassifier, batch: Batch) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        classifier.training_step(batch, 0).backward()
    return {event.key for event in profiled.key_averages()}


@pytest.mark.parametrize("mixed", [False, True])
def test_a_training_step_reads_nothing_back(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own looks at its values on a CPU, and on no other device
    monkeypatch.setattr(nn.functional, "one_hot", lambda targets, classes: torch.eye(classes).long()[targets])
    augment = {"crop": "padded", "flip": 0.5, "erase": 0.3}
    augment |= {"mixup": {"probability": 0.4}, "cutmix": {"probability": 0.4}} if mixed else {}
    classifier = small_classifier(augment=augment)
    batch = Batch(
        torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8),
        torch.arange(8) % 6,
        torch.arange(8),
        torch.ones(8).bool(),
    )
    classifier.training_step(batch, 0)
    seen = operators(classifier, batch)
    assert "aten::convolution" in seen
    assert "aten::_local_scalar_dense" not in seen
    monkeypatch.setattr(classifier.train_metrics.loss, "update", lambda loss, samples: loss.item())
    assert "aten::_local_scalar_dense" in operators(classifier, batch)


def test_a_temperature_is_fitted_on_unscaled_logits() -> None:
    """Also where the checkpoint has one already, as after a resume."""
    classifier, raw = small_classifier(), torch.randn(8, 3)
    classifier.keep_logits, classifier.temperature = True, 0.5
    kept = classifier.predictions(Outputs(torch.tensor(0.0), raw / 0.5, torch.zeros(8, dtype=torch.long)))
    assert torch.equal(kept["logits"], raw)


THREE = {name: {"_target_": f"torchmetrics.classification.Multiclass{name}"} for name in ("AUROC", "F1Score")}
THREE["mcc"] = {"_target_": "torchmetrics.classification.MulticlassMatthewsCorrCoef"}


def test_added_metrics_read_nothing_before_the_end() -> None:
    """They are updated at the end of validation; their values are those of torchmetrics, over all batches."""
    classifier = small_classifier(metrics=THREE)
    given = batches(6)
    outputs = [Outputs(torch.tensor(1.0), logits, targets) for logits, targets in given]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for one in outputs:
            classifier.val_metrics.update(one, classifier.measured)
    seen = {event.key for event in profiled.key_averages()}
    assert "aten::softmax" in seen and not seen & {"aten::_local_scalar_dense", "aten::bincount"}
    found = classifier.val_metrics.compute_and_reset()
    logits, targets = (torch.cat(parts) for parts in zip(*given, strict=True))
    for name, node in THREE.items():
        metric = getattr(torchmetrics, node["_target_"].rpartition(".")[2])(num_classes=6)
        assert found[name] == pytest.approx(float(metric(logits.softmax(1), targets)), abs=1e-6)
    assert not classifier.val_metrics.waiting


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"_target_": "torchmetrics.classification.MulticlassF1Score", "average": "none"}, "gives 6 numbers"),
        ({"_target_": "torchmetrics.classification.BinaryAccuracy"}, "metrics.mine does not fit this task"),
        ({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}, "expected a metric"),
        ({"_target_": "torchmetrics.classification.MulticlassF1Scor"}, "no 'MulticlassF1Scor' there"),
    ],
)
def test_a_metric_that_does_not_fit_is_said_at_the_start(node: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small_classifier(metrics={"mine": node})


RECALL = {"_target_": "torchmetrics.classification.MulticlassRecall"}
BY_CLASS = {"_target_": "torchmetrics.ClasswiseWrapper", "metric": {**RECALL, "average": "none"}}


def collection(*names: str) -> dict[str, Any]:
    return {"_target_": "torchmetrics.MetricCollection", "metrics": dict.fromkeys(names, RECALL)}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"top1": THREE["mcc"]}, "metrics.top1: top1 is measured already"),
        ({"mine": collection("one", "top1")}, "metrics.mine: top1 is measured already"),
        ({"mine": collection("loss")}, "metrics.mine: loss is measured already"),
        ({"one": THREE["mcc"], "mine": collection("one")}, "metrics.mine: one is measured already"),
        ({"mine": collection("one"), "more": collection("one")}, "metrics.more: one is measured already"),
        ({"mine": BY_CLASS, "more": BY_CLASS}, "metrics.more: multiclassrecall_0 is measured already"),
        ({"items": RECALL}, "metrics.items: attribute 'items' already exists; take another name"),
        ({"a.b": RECALL}, "metrics.a.b: module name can't contain"),
    ],
)
def test_a_name_that_is_taken(metrics: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        small_classifier(metrics=metrics)


def test_the_names_of_several_values() -> None:
    """Those that a metric has on the example, as it logs them, with its direction."""
    loss = {"_target_": "torchmetrics.classification.MulticlassCalibrationError"}
    many = {"_target_": "torchmetrics.MetricCollection", "metrics": {"a": RECALL, "b": loss}, "prefix": "my_"}
    metrics = small_classifier(metrics={"mine": BY_CLASS, "many": many}).val_metrics
    better = metrics.better()
    names = [f"multiclassrecall_{i}" for i in range(6)]
    assert {better[name] for name in names} <= {"max", None} and "mine" not in better
    assert (better["my_a"], better["my_b"]) == ("max", "min")
    for logits, targets in batches(6):
        metrics.update(Outputs(torch.tensor(1.0), logits, targets), small_classifier().measured)
    assert set(metrics.compute_and_reset()) == set(better)


@pytest.mark.parametrize("name", ["auroc", "mcc"])
def test_shipped_metrics_that_fit_several_labels_too(name: str) -> None:
    node = composed(f"metrics={name}")["metrics"]
    spec = {
        "class_names": ["a", "b", "c", "absent"],
        "channels": 1,
        "image_size": 8,
        "mean": [0.5],
        "std": [0.5],
    }
    backbone = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
    metrics = MultiLabelClassifier(spec, backbone, metrics=node).val_metrics
    logits, targets = torch.randn(50, 4), torch.randint(2, (50, 4))
    targets[:, 3] = 0  # auroc leaves out what no image has, as the log says
    task = small_classifier(metrics=node)
    metrics.update(Outputs(torch.tensor(1.0), logits, targets), lambda o: (o.logits.sigmoid(), o.targets))
    found = float(metrics.compute_and_reset()[name])
    if name == "auroc":
        assert found == pytest.approx(sklearn.roc_auc_score(targets[:, :3], logits[:, :3]), abs=1e-5)
    else:
        said = (logits > 0).flatten()
        assert found == pytest.approx(sklearn.matthews_corrcoef(targets.flatten(), said), abs=1e-5)
    given = batches(6)
    for one in given:
        task.val_metrics.update(Outputs(torch.tensor(1.0), *one), task.measured)
    single = float(task.val_metrics.compute_and_reset()[name])
    logits, targets = (torch.cat(parts) for parts in zip(*given, strict=True))
    if name == "auroc":
        expected = sklearn.roc_auc_score(targets, logits.softmax(1), multi_class="ovr")
        task.val_metrics.update(Outputs(torch.tensor(1.0), logits, targets % 5), task.measured)
        of_five = sklearn.roc_auc_score(torch.eye(5)[targets % 5], logits.softmax(1)[:, :5])
        assert float(task.val_metrics.compute_and_reset()[name]) == pytest.approx(of_five, abs=1e-5)
    else:
        expected = sklearn.matthews_corrcoef(targets, logits.argmax(1))
    assert single == pytest.approx(expected, abs=1e-5)
