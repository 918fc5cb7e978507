"""Augmentations as a user writes them: with draws and with state."""

import random

import numpy as np
import torch
from torch import Tensor, nn


class Drift(nn.Module):
    """Moves the brightness by a sum of draws, its state, from the generators of torch and Python."""

    level: Tensor

    def __init__(self, scale: float = 0.05) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("level", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.level += self.scale * (random.random() - 0.5)
        return images + self.level + self.scale * torch.randn_like(images)


class Shift:
    """Called as albumentations' transforms are: moves the pixels of `image (H, W, C) uint8` by a draw."""

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
        draw = np.random.rand() + random.random()  # noqa: NPY002  # as other libraries do
        return {"image": np.roll(image, int(8 * draw), axis=1)}


class Relabel(nn.Module):
    """Gives some images noise, and the next one's label."""

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(images), device=images.device) < 0.1
        return images, torch.where(chosen, targets.roll(1), targets)


def stretched(images: Tensor, factor: int = 2) -> Tensor:
    return images.repeat_interleave(factor, -1)


def named(images: Tensor) -> dict[str, Tensor]:
    return {"images": images}


def one_label(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return images, targets[:1]


class Several(nn.Module):
    """Takes any number of tensors, as kornia's sequences do, but here one."""

    def forward(self, *tensors: Tensor) -> Tensor:
        (images,) = tensors
        return images + torch.rand(1)
