"""What is measured in evaluation, as torchmetrics' Metrics: exact over any number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15


def metric_names(num_classes: int) -> list[str]:
    """Returns what `Evaluation` measures; top5 where there are more than five classes."""
    names = ["top1", "precision", "recall", "f1", "calibration_error"]
    return [*names, "top5"] if num_classes > 5 else names


class Evaluation(Metric):
    """top1, top5, macro precision, recall and F1, and the expected calibration error (Guo et al. 2017, 15 bins).

    The numbers are those of torchmetrics' MulticlassAccuracy, MulticlassPrecision and so on. They share one look
    at the logits here, and sums of the size of the classes, not of their square: at 1,000 classes a batch takes a
    tenth of the time. (A confidence of exactly 1 lies in the last range; torchmetrics has one of its own for it.)
    """

    full_state_update = False
    counts: Tensor  # (3, K) int64: of each class, the samples that are right, predicted, there
    bins: Tensor  # (3, BINS): of each range of confidence, samples, right ones, the sum of confidences
    within5: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", default=torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bins", default=torch.zeros(3, BINS), dist_reduce_fx="sum")
        self.add_state("within5", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        confidences, predicted = logits.softmax(1).max(1)
        right, one = predicted == targets, torch.ones_like(targets)
        for row, (classes, samples) in enumerate(((targets, right.long()), (predicted, one), (targets, one))):
            self.counts[row].index_add_(0, classes, samples)  # bincount would read from the device
        place = confidence_bins(confidences)
        self.bins.index_add_(
            1, place, torch.stack([torch.ones_like(confidences), right.float(), confidences])
        )
        if self.num_classes > 5:
            self.within5 += (logits.topk(5, sorted=False).indices == targets[:, None]).sum()

    def compute(self) -> dict[str, Tensor]:
        right, predicted, there = self.counts.float()
        total, seen = there.sum(), (predicted + there > 0).float()
        recall, precision = right / there.clamp_min(1), right / predicted.clamp_min(1)
        f1 = 2 * right / (predicted + there).clamp_min(1)
        samples, hits, confidence = self.bins
        values = {
            "top1": right.sum() / total,
            "precision": (precision * seen).sum() / seen.sum(),
            "recall": (recall * seen).sum() / seen.sum(),
            "f1": (f1 * seen).sum() / seen.sum(),
            "calibration_error": (hits - confidence).abs().sum() / samples.sum(),
        }
        return values | ({"top5": self.within5 / total} if self.num_classes > 5 else {})


def confidence_bins(confidences: Tensor) -> Tensor:
    """Returns the range of 1 / BINS that each confidence lies in; the last one includes 1."""
    return (confidences * BINS).long().clamp_(0, BINS - 1)


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
    order of the data set; also `unscaled (N,)`, the confidences of `raw` logits where those are given, and
    `logits (N, K)` with `keep_logits`.
    """

    NAMES = ("indices", "targets", "predictions", "confidences", "unscaled", "logits")
    keep_logits = False

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor, indices: Tensor, raw: Tensor | None = None) -> None:
        confidences, predictions = logits.softmax(1).max(1)
        found = {
            "indices": indices,
            "targets": targets,
            "predictions": predictions,
            "confidences": confidences,
        }
        if raw is not None:
            found["unscaled"] = raw.softmax(1).amax(1)
        if self.keep_logits:
            found["logits"] = logits if raw is None else raw  # a temperature is fitted on the network's own
        for name, values in found.items():
            getattr(self, name).append(values)

    def compute(self) -> dict[str, Tensor]:
        from torchmetrics.utilities import dim_zero_cat

        gathered = {
            name: dim_zero_cat(getattr(self, name)) for name in self.NAMES if len(getattr(self, name))
        }
        order = gathered["indices"].argsort()
        return {name: values[order].cpu() for name, values in gathered.items()}
