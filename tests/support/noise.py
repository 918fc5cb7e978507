"""Noise in place of images, and the facts of a set that they are from."""

import torch
from torch import Tensor

from imgcls.spec import DataSpec

CLASSES = 10


def spec(image_size: int = 16, channels: int = 3, mirror: bool = True) -> DataSpec:
    names = tuple(map(str, range(CLASSES)))
    return DataSpec(names, channels, image_size, (0.5,) * channels, (0.2,) * channels, mirror=mirror)


def noise(*shape: int) -> Tensor:
    """Pixels from 1 to 255: no pixel looks like padding."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def as_bytes(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()
