"""Losses of logits `(N, K)` and targets, classes `(N,)` or shares `(N, K)`, which are smoothed alike."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.config import check as configs
from imgcls.config.build import build
from imgcls.errors import UserError

Smoothing = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
PosWeight = Literal["balanced"] | list[Annotated[float, Field(gt=0)]] | None


def build_loss(
    config: Mapping[str, Any],
    weights: Literal["balanced"] | Sequence[float] | None,
    num_classes: int,
    class_counts: Sequence[int] | None = None,
) -> nn.Module:
    """Builds the training loss of conf/loss; one with a parameter `class_counts` gets the number of training
    images of each class. "balanced" weights are from these, as scikit-learn's. Raises UserError: weights are
    not one for each class."""
    named, _ = configs.hints_of(configs.locate(config.get("_target_"), "loss._target_"))
    given: dict[str, Any] = {"class_counts": class_counts} if "class_counts" in named and class_counts else {}
    if weights is None:
        return build(config, "loss", nn.Module, **given)
    if weights == "balanced":
        counts = class_counts or []
        weights = [sum(counts) / (len(counts) * count) for count in counts]
    assert not isinstance(weights, str)
    if len(weights) != num_classes or min(weights) < 0 or not any(weights):
        expected = f"expected {num_classes} numbers of 0 or more, not all 0"
        raise UserError(f"task.class_weights={weights}: {expected}")
    return build(config, "loss", nn.Module, weight=torch.tensor(weights), **given)


def check_loss(loss: object) -> None:
    """Raises UserError for a training loss that no step can be taken by."""
    if not isinstance(loss, Tensor):
        expected = "expected an imgcls.Outputs with a tensor as its loss"
        raise UserError(f"the task's compute gives {type(loss).__name__} in place of a loss; {expected}")
    if loss.ndim:
        advice = "expected one number, such as with loss.reduction=mean"
        raise UserError(f"the training loss is of the shape {tuple(loss.shape)}; {advice}")
    if not loss.requires_grad:
        raise UserError("the training loss has no gradient; compute it from what the network returns")


def smoothed(targets: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """Returns targets as shares `(N, K)`, of which the share `smoothing` is spread over all classes."""
    shares = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return shares * (1 - smoothing) + smoothing / logits.shape[1]


def label_rows(targets: Tensor, labels: int) -> Tensor:
    """Returns targets as shares `(N, K) float32`, a row for each sample; classes `(N,)` become one-hot."""
    return (targets if targets.ndim == 2 else F.one_hot(targets, labels)).float()


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """torch's cross-entropy, with a bound on the share of each target that is spread over all classes."""

    def __init__(self, label_smoothing: Smoothing = 0.0, weight: Tensor | None = None) -> None:
        super().__init__(weight, label_smoothing=label_smoothing)


class LogitAdjustedLoss(CrossEntropyLoss):
    """Logit-adjusted cross-entropy (Menon et al. 2021, arXiv:2007.07314, equation 10): that of the logits
    plus tau · log of the share of a class in the training images. Logits so learnt, as they are, tell classes
    apart as if all were equally frequent.

    Args:
        class_counts: how many training images each class has.
        tau: 0 is cross-entropy; the paper takes 1.
        label_smoothing, weight: as in `CrossEntropyLoss`.
    """

    shift: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        tau: NotNegative = 1.0,
        label_smoothing: Smoothing = 0.0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(label_smoothing, weight)
        counts = torch.tensor(class_counts, dtype=torch.float64)
        self.register_buffer("shift", (tau * (counts / counts.sum()).log()).float())

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input + self.shift, target)


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy, each class for itself (Wightman et al. 2021, arXiv:2110.00476).

    Equal to timm's for classes; shares, as mixing makes them, are smoothed in the same way here.

    Args:
        label_smoothing: share of each target that is spread over all classes.
        target_threshold: shares above it count as 1, the others as 0; null: as they are.
        sum_classes: the sum over classes instead of their mean.
        weight: of each class `(K,)`.
    """

    weight: Tensor | None

    def __init__(
        self,
        label_smoothing: Smoothing = 0.1,
        target_threshold: float | None = None,
        sum_classes: bool = False,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.target_threshold = label_smoothing, target_threshold
        self.sum_classes = sum_classes
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        shares = smoothed(targets, logits, self.label_smoothing)
        if self.target_threshold is not None:
            shares = (shares > self.target_threshold).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, shares, self.weight)
        return loss * logits.shape[1] if self.sum_classes else loss


class FocalLoss(nn.Module):
    """Focal loss over a softmax (Lin et al. 2017, arXiv:1708.02002): easy samples count less.

    Args:
        gamma: 0 is cross-entropy; the paper takes 2.
        label_smoothing: share of each target that is spread over all classes.
        weight: of each class `(K,)`.
    """

    weight: Tensor | None

    def __init__(
        self, gamma: NotNegative = 2.0, label_smoothing: Smoothing = 0.0, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.gamma, self.label_smoothing = gamma, label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        shares = smoothed(targets, logits, self.label_smoothing)
        total: Tensor | int = len(logits)
        if self.weight is not None:  # scaled as torch's cross-entropy is, which it equals for gamma 0
            shares = shares * self.weight
            total = len(logits) if targets.ndim == 2 else self.weight[targets].sum()
        log_probability = logits.log_softmax(1)
        complement = -torch.expm1(log_probability)  # 1 - p
        wrong = complement.clamp_min(1e-12)  # a power of 0 would have no gradient
        return -(wrong**self.gamma * log_probability * shares).sum() / total


class LabelCrossEntropy(nn.Module):
    """Binary cross-entropy of several labels, each for itself; the mean over samples and labels.

    Args:
        pos_weight: of the positives of each label `(K,)`; "balanced": the task sets negatives / positives.
        label_smoothing: share of each target that becomes a half, which says nothing of the label.
    """

    pos_weight: Tensor | None

    def __init__(self, pos_weight: PosWeight = None, label_smoothing: Smoothing = 0.0) -> None:
        super().__init__()
        if pos_weight == "balanced":
            raise UserError("loss.pos_weight=balanced is for task=multilabel; expected a list or null")
        self.label_smoothing = label_smoothing
        self.register_buffer("pos_weight", None if pos_weight is None else torch.tensor(pos_weight))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        shares = label_rows(targets, logits.shape[1]) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), shares, pos_weight=self.pos_weight)


class AsymmetricLoss(nn.Module):
    """Asymmetric loss of several labels (Ridnik et al. 2021, arXiv:2009.14119): easy negatives count little.

    With the probability p and p_m = max(p - clip, 0), a positive costs -(1 - p)^gamma_pos · log p, and a
    negative -p_m^gamma_neg · log(1 - p_m). As the authors train, both powers are constants for the gradient.
    The loss is the mean over samples and labels, where theirs is the sum.

    Args:
        gamma_neg, gamma_pos: powers; all 0, with a clip of 0, is binary cross-entropy. The paper takes 4, and
            0 to 1.
        clip: negatives of a lower probability cost nothing.
        label_smoothing: share of each target that becomes a half.
    """

    def __init__(
        self,
        gamma_neg: NotNegative = 4.0,
        gamma_pos: NotNegative = 1.0,
        clip: Smoothing = 0.05,
        label_smoothing: Smoothing = 0.0,
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()
        shares = label_rows(targets, logits.shape[1]) * (1 - self.label_smoothing) + self.label_smoothing / 2
        absent = logits.neg().sigmoid()  # 1 - p, exact also where p is next to 1
        log_absent = (absent + self.clip).clamp(max=1).log() if self.clip else F.logsigmoid(-logits)
        with torch.no_grad():
            positive = absent**self.gamma_pos
            negative = (logits.sigmoid() - self.clip).clamp(min=0) ** self.gamma_neg
        costs = shares * positive * F.logsigmoid(logits) + (1 - shares) * negative * log_absent
        return -costs.mean()
