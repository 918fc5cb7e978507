"""Losses that torch and timm lack. A loss takes logits `(N, K)` and targets, classes `(N,)` or shares `(N, K)`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FocalLoss(nn.Module):
    """Focal loss over a softmax (Lin et al. 2017, arXiv:1708.02002): easy samples count less.

    Args:
        gamma: 0 is cross-entropy; the paper takes 2.
        label_smoothing: share of each target that is spread over all classes.
        weight: of each class `(K,)`.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, label_smoothing: float = 0.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.gamma, self.label_smoothing = gamma, label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        dense = targets.ndim == 2
        shares = targets if dense else F.one_hot(targets, classes).to(logits.dtype)
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        total: Tensor | int = len(logits)
        if self.weight is not None:  # scaled as torch's cross-entropy is, to which gamma 0 is equal
            shares = shares * self.weight
            total = len(logits) if dense else self.weight[targets].sum()
        log_probability = logits.log_softmax(1)
        wrong = (-torch.expm1(log_probability)).clamp_min(1e-12)  # 1 - p; never 0, where a power has no gradient
        return -(wrong**self.gamma * log_probability * shares).sum() / total
