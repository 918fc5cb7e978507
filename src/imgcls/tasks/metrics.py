"""Metrics of training and evaluation, as torchmetrics' Metrics: exact over any number of processes."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

BINS = 15


def logged_names(classes: int) -> set[str]:
    """Returns the names that a training logs, which a callback, a schedule or a sweep may watch."""
    names = {"train/loss", "train/top1", "lr", "images_per_second", "val/loss"}
    return names | {f"val/{name}" for name in metric_names(classes)}


def metric_names(num_classes: int) -> list[str]:
    """Returns the names of what `Evaluation` measures; top5 where there are more than five classes."""
    names = ["top1", "precision", "recall", "f1", "calibration_error"]
    return [*names, "top5"] if num_classes > 5 else names


class Scores(nn.Module):
    """All that is measured of a split: the mean negative log-likelihood as `loss`, and `Evaluation`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss, self.metrics = MeanLoss(), Evaluation(num_classes)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.loss.update(nn.functional.cross_entropy(logits, targets), len(targets))
        self.metrics.update(logits, targets)

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Returns the values by name, over all batches and processes, and starts anew."""
        values = {"loss": self.loss.compute(), **self.metrics.compute()}
        self.loss.reset()
        self.metrics.reset()
        return values


class Evaluation(Metric):
    """top1, top5, macro precision, recall and F1, and the calibration error (Guo et al. 2017).

    The numbers are those of torchmetrics' MulticlassAccuracy and so on. Here they share one look at the
    logits and keep sums for each class, not for each pair of classes: at 1,000 classes a batch takes a tenth
    of the time. (A confidence of exactly 1 lies in the last range; torchmetrics has one of its own for it.)
    """

    full_state_update = False
    counts: Tensor  # (3, K) int64: for each class, how many samples are right, predicted, there
    bins: Tensor  # (3, BINS): for each range of confidence, samples, right ones, the sum of confidences
    within5: Tensor  # () int64: samples whose class is among the five highest logits

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", default=torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bins", default=torch.zeros(3, BINS), dist_reduce_fx="sum")
        self.add_state("within5", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        confidences, predicted = logits.softmax(1).max(1)
        right, one = predicted == targets, torch.ones_like(targets)
        self.counts[0].index_add_(0, targets, right.long())  # bincount would read from the device
        self.counts[1].index_add_(0, predicted, one)
        self.counts[2].index_add_(0, targets, one)
        sums = torch.stack([torch.ones_like(confidences), right.float(), confidences])
        self.bins.index_add_(1, confidence_bins(confidences), sums)
        if self.num_classes > 5:
            self.within5 += (logits.topk(5, sorted=False).indices == targets[:, None]).sum()

    def compute(self) -> dict[str, Tensor]:
        right, predicted, there = self.counts.float()
        total, seen = there.sum(), (predicted + there > 0).float()
        recall, precision = right / there.clamp_min(1), right / predicted.clamp_min(1)
        f1 = 2 * right / (predicted + there).clamp_min(1)
        samples, hits, confidence = self.bins
        values = {"top1": right.sum() / total}
        for name, scores in (("precision", precision), ("recall", recall), ("f1", f1)):
            values[name] = (scores * seen).sum() / seen.sum()
        values["calibration_error"] = (hits - confidence).abs().sum() / samples.sum()
        if self.num_classes > 5:
            values["top5"] = self.within5 / total
        return values


def confidence_bins(confidences: Tensor) -> Tensor:
    """Returns the number of the range that each confidence lies in, of BINS; the last one includes 1."""
    return (confidences * BINS).long().clamp_(0, BINS - 1)


class MeanLoss(Metric):
    """The mean of batch means, each weighted by the number of its samples; never reads from the device.
    (torchmetrics' MeanMetric looks for NaN on the host, and with that switched off it drops the weights.)"""

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
    """Gathers what was predicted for each sample, over all batches and processes. `compute` returns
    `indices`, `targets`, `predictions (N,) int64` and `confidences (N,) float32`, in the order of the data
    set; also `unscaled (N,)`, the confidences of `raw` logits where those are given, and the raw `logits (N,
    K)` with `keep_logits`."""

    NAMES = ("indices", "targets", "predictions", "confidences", "unscaled", "logits")
    keep_logits = False
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor, indices: Tensor, raw: Tensor | None = None) -> None:
        confidences, predictions = logits.softmax(1).max(1)
        found = {"indices": indices, "targets": targets, "predictions": predictions}
        found["confidences"] = confidences
        if raw is not None:
            found["unscaled"] = raw.softmax(1).amax(1)
        if self.keep_logits:
            found["logits"] = logits if raw is None else raw
        for name, values in found.items():
            getattr(self, name).append(values)

    def compute(self) -> dict[str, Tensor]:
        lists = {name: getattr(self, name) for name in self.NAMES}
        gathered = {name: dim_zero_cat(values) for name, values in lists.items() if len(values)}
        order = gathered["indices"].argsort()
        return {name: values[order].cpu() for name, values in gathered.items()}
