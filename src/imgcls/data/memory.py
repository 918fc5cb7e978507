"""Base class of sources that fit in memory: all images in one uint8 tensor, a batch fetched in one gather."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imgcls.augment.image import in_workers
from imgcls.data.batch import Batch, EpochSampler, ImageDataset, in_channels
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.spec import DataSpec


class MemoryImages(ImageDataset):
    """`images (N, C, H, W) uint8` and their targets in memory."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.stored, self.targets = images, targets

    def images(self, keys: Tensor) -> Tensor:
        images = self.stored[keys % len(self)]
        return images if self.transform is None else self.transformed(keys, images)

    def picture(self, index: int) -> Tensor:
        return self.stored[index].cpu()

    def part(self, indices: Tensor) -> Self:
        return type(self)(self.stored[indices], self.targets[indices])

    def contents(self) -> Iterator[memoryview]:
        yield np.ascontiguousarray(self.stored.cpu().numpy()).data

    def to(self, device: torch.device) -> None:
        """Moves images and targets to a device; from then on batches are made there."""
        self.stored, self.targets, self.device = self.stored.to(device), self.targets.to(device), device


class MemoryDataModule(ImageDataModule):
    """A set that fits in memory. A subclass sets `spec` and gives `arrays`.

    Args:
        device: where each process keeps its images and makes its batches, the kind of device that it trains
            on; null: in the host's memory, and each batch is sent.
        Other arguments: `ImageDataModule`.
    """

    def __init__(self, *, device: Literal["cpu", "cuda"] | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.device = device
        if device == "cuda" and not torch.cuda.is_available():
            raise self.refused("there is no CUDA device here; expected one")
        if device is not None and self.num_workers:
            raise self.refused("there is nothing for workers to do; expected data.num_workers=0")

    def refused(self, reason: str) -> UserError:
        return UserError(f"data.device={self.device}: {reason}, or data.device=null")

    def setup(self, stage: str | None = None) -> None:
        if self.device is not None and in_workers(self.augment, self.spec):
            reason = "a resized crop and augment.image work image by image, in workers"
            raise self.refused(f"{reason}; choose an augment without them such as augment=standard")
        super().setup(stage)
        for images in self.sets.values():
            if isinstance(images, MemoryImages):
                check_proportions(images.stored, self.spec)

    def _loader(self, split: str, sampler: EpochSampler, drop_last: bool) -> DataLoader[Batch]:
        images = self.sets[split]
        if self.device is not None and isinstance(images, MemoryImages):
            here = torch.device(self.device) if self.trainer is None else self.trainer.strategy.root_device
            if here.type != self.device:
                raise self.refused(f"training is on {here.type}; expected the same")
            images.to(here)
        return super()._loader(split, sampler, drop_last)

    @abstractmethod
    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns images `(N, H, W) or (N, H, W, C) uint8` and targets: classes `(N,)`, labels `(N, K)` of
        0 and 1, or floats; None for a split to be cut."""

    def load(self, split: str) -> MemoryImages | None:
        if (arrays := self.arrays(split)) is None:
            return None
        images, targets = (torch.from_numpy(np.array(array)) for array in arrays)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        targets = targets.float() if targets.is_floating_point() else targets.long()
        return MemoryImages(in_channels(images, self.spec.channels), targets)


def check_proportions(images: Tensor, spec: DataSpec) -> None:
    """Raises UserError where the device, which resizes the images of a set in memory, would stretch `images
    (N, C, H, W)` though `spec.fit` says that they keep their proportions."""
    (tall, wide), squashed = images.shape[-2:], spec.fit == "squash"
    for key, (height, width) in (("image_size", spec.size), ("train_size", spec.for_training.size)):
        if abs(height * wide - width * tall) >= max(tall, wide) and not squashed:  # by a pixel or more
            given = f"data.{key}=[{height},{width}] stretches images of {tall}×{wide} pixels"
            raise UserError(f"{given}; expected their proportions, or data.fit=squash")
