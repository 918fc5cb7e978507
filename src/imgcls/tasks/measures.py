"""Metrics of ours: the evaluation of a classifier, the mean loss, and what a test keeps of each sample.

They are of samples, whatever the batches are, and the same for any number of processes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from imgcls.report.calibration import BINS, confidence_bins


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
        self.better = dict.fromkeys(("top1", "top5", "precision", "recall", "f1"), "max")
        self.better["calibration_error"] = "min"
        if num_classes <= 5:
            del self.better["top5"]
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
        if self.num_classes > 5:
            values["top5"] = self.within5 / total
        for name, scores in (("precision", precision), ("recall", recall), ("f1", f1)):
            values[name] = (scores * seen).sum() / seen.sum()
        values["calibration_error"] = (hits - confidence).abs().sum() / samples.sum()
        return values


class LabelScores(Metric):
    """f1_micro and f1_macro of several labels, as torchmetrics' MultilabelF1Score, from sums for each label.
    The macro mean is over the labels that an image has. `thresholds (K,)`: a label is given above its own."""

    full_state_update = False
    thresholds: Tensor
    counts: Tensor  # (3, K) int64: for each label, in how many samples it is right, given, there

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.better = {"f1_micro": "max", "f1_macro": "max"}
        self.register_buffer("thresholds", torch.full((num_labels,), 0.5), persistent=False)
        self.add_state("counts", default=torch.zeros(3, num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        given = logits.sigmoid() > self.thresholds
        self.counts += torch.stack([(given & targets.bool()).sum(0), given.sum(0), targets.sum(0)])

    def compute(self) -> dict[str, Tensor]:
        right, given, there = self.counts.double()
        f1, seen = 2 * right / (given + there).clamp_min(1), there > 0
        micro = 2 * right.sum() / (given + there).sum().clamp_min(1)
        return {"f1_micro": micro.float(), "f1_macro": (f1[seen].sum() / seen.sum().clamp_min(1)).float()}


class LabelEvaluation(LabelScores):
    """`LabelScores`, and map: the mean over labels of the average precision, as torchmetrics and scikit-learn
    have it, of labels that an image has. It keeps the scores of the split, 5 bytes for each sample and
    label."""

    scores: list[Tensor]  # of probabilities (N, K) float32
    targets: list[Tensor]  # of (N, K) uint8

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels)
        self.better = {"map": "max", **self.better}
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        super().update(logits, targets)
        self.scores.append(logits.sigmoid())
        self.targets.append(targets.byte())

    def compute(self) -> dict[str, Tensor]:
        seen = self.counts[2] > 0  # torchmetrics warns of the others
        scores, targets = dim_zero_cat(self.scores)[:, seen], dim_zero_cat(self.targets)[:, seen].long()
        found, labels = torch.zeros(()), int(seen.sum())
        if labels:
            found = multilabel_average_precision(scores, targets, labels, validate_args=False)
        return {"map": found, **super().compute()}


class MeanLoss(Metric):
    """The mean of batch means, each weighted by the number of its samples; never reads from the device.
    (torchmetrics' MeanMetric looks for NaN on the host, and with that switched off it drops the weights.)"""

    full_state_update = False
    higher_is_better = False
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


class Gathered(Metric):
    """What a test keeps of each sample, over all batches and processes, in the order of the data set."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, int] = {}  # the number of dimensions of each value

    def update(self, indices: Tensor, values: Mapping[str, Tensor]) -> None:
        for name, value in {"indices": indices, **values}.items():
            if name not in self.kept:
                self.kept[name] = value.ndim
                self.add_state(name, default=[], dist_reduce_fx="cat")
            getattr(self, name).append(value)

    def compute(self) -> dict[str, Tensor]:
        lists = {name: getattr(self, name) for name in self.kept}
        gathered = {name: dim_zero_cat(values) for name, values in lists.items() if len(values)}
        order = gathered["indices"].argsort()
        return {name: values[order].cpu() for name, values in gathered.items()}

    def rows(self) -> dict[str, Tensor]:
        """Returns tensors by name, a row for each sample, the samples' numbers in the data set as `indices
        (N,) int64` among them. (Of one number torchmetrics makes a scalar.)"""
        found = self.compute()
        return {
            name: value if value.ndim else value.view((1,) * self.kept[name]) for name, value in found.items()
        }
