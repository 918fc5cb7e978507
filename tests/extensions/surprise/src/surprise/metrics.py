"""The metric."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Surprise(Metric):
    """The mean of -log2 of the probability of the right class, in bits; `most` for one sample."""

    higher_is_better = False
    full_state_update = False
    bits: Tensor  # (K,): the sum for each class
    samples: Tensor  # (K,)

    def __init__(self, num_classes: int, most: float = 20.0) -> None:
        super().__init__()
        self.most = most
        self.add_state("bits", torch.zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Measures probabilities `(N, K)` and classes `(N,)`."""
        right = probabilities.gather(1, targets[:, None])[:, 0]
        self.bits.index_add_(0, targets, -right.log2().clamp_min(-self.most))
        self.samples.index_add_(0, targets, torch.ones_like(right))

    def compute(self) -> Tensor:
        """Returns the mean over the classes that there are: a rare class counts like any other."""
        there = self.samples > 0
        return (self.bits[there] / self.samples[there]).mean()
