"""Pictures that Python code has in hand: paths, images of Pillow, arrays and tensors."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgcls.data.loading.decode import FAULTS, from_pillow
from imgcls.errors import UserError

Picture = str | Path | Image.Image | np.ndarray | Tensor


def several(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """Returns images as several, also where it is one. Raises UserError: it is neither."""
    if isinstance(images, Picture):
        return [images]
    if not isinstance(images, Iterable):
        kinds = "paths, images of Pillow, arrays or tensors"
        raise UserError(f"the images are a {type(images).__name__}; expected {kinds}, one or several")
    return images


def pixels(image: Image.Image | np.ndarray | Tensor, bits: int | None = None) -> Tensor:
    """Returns an image `(C, H, W) uint8` of 1 or 3 channels, given as one of Pillow's, at the frame that it
    is at, as an array `(H, W)` or `(H, W, C) uint8`, or as a tensor `(C, H, W) uint8`. `bits`: as `decode`
    takes them. Raises UserError: it is none of these."""
    if isinstance(image, Image.Image):
        try:
            return from_pillow(image, bits)
        except FAULTS as error:
            raise UserError(f"an image of Pillow can't be read ({error})") from error
    kind = f"{type(image).__name__} of {getattr(image, 'dtype', 'no type of numbers')}"
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        array = np.ascontiguousarray(image if image.ndim > 2 else image[..., None])
        image = torch.from_numpy(array).movedim(-1, 0)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        raise UserError(f"an image is a {kind}; expected a path, an image of Pillow, or uint8")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise UserError(f"an image has the shape {tuple(image.shape)}; expected (1 or 3, height, width)")
    return image
