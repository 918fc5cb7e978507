"""Losses that torch and timm lack. A loss takes logits `(N, K)` and targets, classes `(N,)` or shares `(N, K)`."""

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
        shares = targets if targets.ndim == 2 else F.one_hot(targets, classes).to(logits.dtype)
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.weight is not None:
            shares = shares * self.weight
        log_probability = logits.log_softmax(1)
        terms = (1 - log_probability.exp()) ** self.gamma * log_probability * shares
        # As in torch's cross-entropy, class weights leave the scale of the loss as it is.
        total = shares.sum() if self.weight is not None else len(logits)
        return -terms.sum() / total
