"""Preparation of an image for evaluation: resized, and its centre cut, or the centre and the corners."""

from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from imgcls.spec import DataSpec


class Proportional:
    """Resizes an image `(C, H, W) uint8` with its proportions kept, to what covers a size or fits into it.
    The other side is rounded down, as torchvision does."""

    def __init__(self, size: tuple[int, int], mode: v2.InterpolationMode, covers: bool) -> None:
        self.size, self.mode, self.covers = size, mode, covers

    def __call__(self, image: Tensor) -> Tensor:
        (height, width), (tall, wide) = self.size, image.shape[-2:]
        by_height = (height * wide >= width * tall) == self.covers  # else by width
        size = (height, height * wide // tall) if by_height else (width * tall // wide, width)
        return v2.functional.resize(image, [max(side, 1) for side in size], self.mode, antialias=True)


def evaluation_transform(spec: DataSpec, crops: bool = False) -> v2.Compose:
    """Returns what evaluation does to a decoded image: `spec.resize`, as `spec.fit` says, and the centre of
    it; with `crops` the centre and the four corners, `(5, C, H, W)`."""
    mode = v2.InterpolationMode(spec.interpolation)
    cut = partial(five_crops, size=spec.size) if crops else v2.CenterCrop(spec.size)
    if spec.fit == "squash":
        return v2.Compose([v2.Resize(spec.resize, mode, antialias=True), cut])
    resize = Proportional(spec.resize, mode, covers=spec.fit == "crop")
    return v2.Compose([resize, cut] if spec.fit == "crop" else [resize, v2.CenterCrop(spec.resize), cut])


def five_crops(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the centre and the corners of an image `(C, H, W)`: `(5, C, *size)`."""
    *corners, centre = v2.functional.five_crop(image, list(size))
    return torch.stack([centre, *corners])
