"""Scoring: how a published test set has the answers of a classifier counted."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.tasks.metrics import Outputs


@dataclass(frozen=True)
class Scoring:
    """Makes outputs of logits and targets; by default with cross-entropy, as they are.

    Args:
        others: classes `(K,) bool` that the set has no image of: their logits are left out.
        any_label: targets are `(N, K)`, and each of an image's labels is right.
    """

    others: Tensor | None = None
    any_label: bool = False

    def __call__(self, logits: Tensor, targets: Tensor) -> Outputs:
        if self.others is not None:
            logits = logits.masked_fill(self.others.to(logits.device), -torch.inf)
        if self.any_label:  # the likeliest of them: it is among the k likeliest classes if any is
            targets = logits.masked_fill(targets == 0, -torch.inf).argmax(1)
        return Outputs(F.cross_entropy(logits, targets), logits, targets)
