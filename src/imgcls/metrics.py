"""What is measured in evaluation, by torchmetrics: exact over any number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)


def evaluation_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Returns top1, top5 (where there are more than five classes), macro precision, recall and F1, and the
    expected calibration error (Guo et al. 2017, 15 bins)."""
    metrics: dict[str, Metric | MetricCollection] = {
        "top1": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "precision": MulticlassPrecision(num_classes, average="macro", validate_args=False),
        "recall": MulticlassRecall(num_classes, average="macro", validate_args=False),
        "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
        "calibration_error": CalibrationError(num_classes, n_bins=15, norm="l1", validate_args=False),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro", validate_args=False)
    # Named, not found out: torchmetrics takes two metrics for one where their states agree after the first
    # batch, as those of top1 and top5 do when all is right.
    groups = [[name] for name in metrics if name not in ("precision", "recall", "f1")] + [["precision", "recall", "f1"]]
    return MetricCollection(metrics, prefix=prefix, compute_groups=groups)


class CalibrationError(MulticlassCalibrationError):
    """torchmetrics' own takes logits that happen to lie in [0, 1] for probabilities."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.softmax(1), target)


class MeanLoss(Metric):
    """The mean of batch means, each weighted by the number of its samples; never reads from the device.

    (torchmetrics' MeanMetric looks for NaN on the host, and with that switched off it drops the weights.)
    """

    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        self.total += loss * samples
        self.samples += samples

    def compute(self) -> Tensor:
        return self.total / self.samples


class Predictions(Metric):
    """Gathers what was predicted for each sample, over all batches and processes.

    `compute` returns `indices`, `targets`, `predictions (N,) int64` and `confidences (N,) float32`, in the
    order of the data set.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("indices", "targets", "predictions", "confidences"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor, indices: Tensor) -> None:
        confidences, predictions = logits.softmax(1).max(1)
        self.indices.append(indices)  # type: ignore[operator, union-attr]
        self.targets.append(targets)  # type: ignore[operator, union-attr]
        self.predictions.append(predictions)  # type: ignore[operator, union-attr]
        self.confidences.append(confidences)  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        from torchmetrics.utilities import dim_zero_cat

        names = ("indices", "targets", "predictions", "confidences")
        gathered = {name: dim_zero_cat(getattr(self, name)) for name in names}
        order = gathered["indices"].argsort()
        return {name: values[order].cpu() for name, values in gathered.items()}
