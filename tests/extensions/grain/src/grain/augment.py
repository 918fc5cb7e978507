"""An augmentation of a batch that draws, and remembers what it drew."""

import torch
from torch import Tensor, nn


class Grain(nn.Module):
    """Adds noise to each image, by a strength that walks at random between 0 and `most`.

    Args:
        most: the largest standard deviation; that of the images is 1.
    """

    strength: Tensor  # ()

    def __init__(self, most: float = 0.5) -> None:
        super().__init__()
        self.most = most
        self.register_buffer("strength", torch.tensor(most / 2))

    def forward(self, images: Tensor) -> Tensor:
        """Returns normalised images `(N, C, H, W)`."""
        step = 0.1 * self.most * torch.randn_like(self.strength)
        self.strength.add_(step).clamp_(0, self.most)
        return images + self.strength * torch.randn_like(images)
