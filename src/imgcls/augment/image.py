"""Augmentation of one image, in the workers: our crop, then the entries of `augment.image` in their order.

An entry is anything that is called with an image `(C, H, W) uint8` and returns one: a transform of
torchvision, one that is called as albumentations' are (`image=` an array `(H, W, C)`; returns a dict with
"image"), or one for Pillow's images. It may return V views: `(V, C, H, W)`, or a list of images. The entries
after it are applied to each view.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from imgcls.augment.settings import Augment, built, calls_of
from imgcls.config.check import nodes
from imgcls.config.training import Node
from imgcls.errors import UserError
from imgcls.seeding import key_seed, seed_others
from imgcls.spec import DataSpec

Transform = Callable[[Tensor], Tensor]
TRIALS = 8  # draws with which an entry is tried
TORCHS = ("torchvision.transforms.v2.", "imgcls.augment.image.")  # these draw from torch's generator alone


def with_tensor(call: Any, image: Tensor) -> Any:
    return call(image)


def with_array(call: Any, image: Tensor) -> Any:
    return call(image=image.permute(1, 2, 0).contiguous().numpy())["image"]


def with_picture(call: Any, image: Tensor) -> Any:
    return call(v2.functional.to_pil_image(image))


WAYS = {"a tensor": with_tensor, "image=array": with_array, "a Pillow image": with_picture}


class Entry:
    """A transform that the config names, with the way in which it is called."""

    def __init__(self, node: Node, where: str) -> None:
        self.call, self.where = built(node, where), f"{where}: {node['_target_']}"
        self.way: Callable[[Any, Tensor], Any] = with_tensor
        # Others may draw from the generators of Python and numpy, or from one of their own.
        self.draws_elsewhere = not of_torchvision(node, where)

    def __call__(self, image: Tensor) -> Tensor:
        if image.ndim == 4:
            # Views may share memory, and a transform may write into what it is given.
            return torch.stack([self(view.clone()) for view in image])
        return as_tensor(self.way(self.call, image))

    def tried(self, images: list[Tensor]) -> list[Tensor]:
        """Finds the way in which the transform is called, and returns what it makes of images. Raises
        UserError: it can be called in no way, or returns no image."""
        failures = []
        for words, way in WAYS.items():
            self.way = way
            try:
                found = [self(image) for image in images]
                break
            except Exception as error:
                failures.append(f"{words}: {' '.join(str(error).split())[:80] or type(error).__name__}")
        else:
            raise UserError(f"{self.where} can't be called with an image ({'; '.join(failures)})")
        for before, after in zip(images, found, strict=True):
            views = after.ndim == 4 and (before.ndim == 3 or len(before) == len(after))
            if after.dtype != torch.uint8 or not (after.ndim == 3 or views):
                raise self.refused(after, "uint8 (C, H, W), or (V, C, H, W) of V views")
        return found

    def refused(self, found: Tensor, expected: str) -> UserError:
        kind = str(found.dtype).removeprefix("torch.")
        return UserError(f"{self.where} returned {kind} {tuple(found.shape)}; expected {expected}")


def of_torchvision(node: Node, where: str) -> bool:
    """Returns whether all calls of an entry are torchvision's, or ours of the same kind."""
    targets = [str(inner.get("_target_", "")) for _, inner in nodes(node, where)]
    return all(target.startswith(TORCHS) for target in targets if target)


def as_tensor(found: Any) -> Tensor:
    """Returns what a transform made, as `(C, H, W)`, or a list of it as `(V, C, H, W)`."""
    if isinstance(found, Tensor):
        return found
    if isinstance(found, np.ndarray):
        array = found[..., None] if found.ndim == 2 else found
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3)))
    if isinstance(found, Image.Image):
        return v2.functional.pil_to_tensor(found)
    if isinstance(found, list | tuple):
        return torch.stack([as_tensor(view) for view in found])
    raise TypeError(f"it returned {type(found).__name__}")


class ImageTransform:
    """`first`, then entries; `views` is how many they make of an image, None where they make none."""

    def __init__(self, first: Transform | None, entries: list[Entry]) -> None:
        self.first, self.entries = first, entries
        self.draws_elsewhere = any(entry.draws_elsewhere for entry in entries)
        # albumentations' transforms draw from generators of their own
        self.own_generators = [entry.call for entry in entries if hasattr(entry.call, "set_random_seed")]
        self.views: int | None = None

    def __call__(self, image: Tensor) -> Tensor:
        if self.draws_elsewhere:
            seed = torch.initial_seed()  # that of this sample, which ImageDataset has set
            seed_others(seed)
            for place, call in enumerate(self.own_generators):
                call.set_random_seed(key_seed(seed, 3, place) % 2**32)
        if self.first is not None:
            image = self.first(image)
        for entry in self.entries:
            image = entry(image)
        return image

    def try_on(self, image: Tensor, size: tuple[int, int]) -> None:
        """Tries the entries on a made image `(C, H, W) uint8`; what the run draws stays as it is. Raises
        UserError: an entry fails, or the image that the last returns is not `size`, height and width."""
        shape = (image.shape[0], *size)
        with isolate_rng(include_cuda=False):
            torch.manual_seed(0)
            images, changed = [image] * TRIALS, self.entries[-1]
            for entry in self.entries:
                before, images = images, entry.tried(images)
                sides = [[one.shape[-3:] for one in several] for several in (before, images)]
                changed = entry if sides[0] != sides[1] else changed
        for image in images:
            if image.shape[-3:] != shape or image.shape != images[0].shape:
                raise changed.refused(image, f"uint8 {shape}, or views of it")
        self.views = len(images[0]) if images[0].ndim == 4 else None


def worker_transform(augment: Augment, spec: DataSpec, default: Transform | None = None) -> Transform | None:
    """Returns a worker's transform of a training image: a resized crop, else `default`; then the entries of
    `augment.image`, which were tried. Raises UserError as `ImageTransform.try_on`."""
    crop, (height, width), first = augment.crop_of(spec), spec.for_training.size, default
    if crop == "resized":
        mode = v2.InterpolationMode(spec.interpolation)
        least, most = (bound * width / height for bound in augment.ratio)
        first = v2.RandomResizedCrop((height, width), augment.scale, (least, most), mode, antialias=True)
    elif crop == "own":
        first = None
    entries = [Entry(node, where) for where, node in calls_of(augment.image, "augment.image").items()]
    if not entries:
        if crop == "own":
            raise UserError("augment.crop=own: no entry of augment.image crops; add one, or choose crop=auto")
        return first
    transform = ImageTransform(first, entries)
    stored = (height * 3 // 2 + 1, width * 2) if crop == "own" else (height, width)
    noise = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, (spec.channels, *stored), generator=noise, dtype=torch.uint8)
    transform.try_on(made, (height, width))
    return transform


def in_workers(augment: Augment, spec: DataSpec) -> bool:
    """Says whether something is done to each image by itself."""
    return augment.crop_of(spec) == "resized" or bool(calls_of(augment.image, "augment.image"))


class Views:
    """Makes `count` views of an image `(C, H, W)`: copies, to which the entries that follow are applied with
    draws of their own, as in SimCLR (Chen et al. 2020, arXiv:2002.05709)."""

    def __init__(self, count: Annotated[int, Field(ge=1)] = 2) -> None:
        self.count = count

    def __call__(self, image: Tensor) -> Tensor:
        return image.expand(self.count, *image.shape)


class ThreeAugment(v2.Compose):
    """3-Augment (DeiT III, Touvron et al. 2022): grey, solarised or blurred, then a slight colour jitter."""

    def __init__(self, jitter: float = 0.3) -> None:
        one = [v2.RandomGrayscale(p=1.0), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(5, (0.1, 2.0))]
        super().__init__([v2.RandomChoice(one), v2.ColorJitter(jitter, jitter, jitter)])
