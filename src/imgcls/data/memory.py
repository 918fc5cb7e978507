"""Small sets: all images in one uint8 tensor, a batch fetched in one gather."""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from imgcls.augment import worker_transform
from imgcls.data.base import ImageDataModule, ImageDataset
from imgcls.data.spec import DataSpec


class MemoryImages(ImageDataset):
    """`images (N, C, H, W) uint8` and `targets (N,) int64`, with an optional transform of each training image."""

    def __init__(self, images: Tensor, targets: Tensor, transform: nn.Module | None = None) -> None:
        self.stored, self.targets, self.transform = images, targets, transform

    def images(self, keys: Tensor) -> Tensor:
        images = self.stored[keys % len(self)]
        if self.transform is None:
            return images
        out = []
        for key, image in zip(keys.tolist(), images, strict=True):
            torch.manual_seed(self.sample_seed(key))
            out.append(self.transform(image))
        return torch.stack(out)

    def picture(self, index: int) -> Tensor:
        return self.stored[index]


class MemoryDataModule(ImageDataModule):
    """A set that fits in memory. A subclass gives `spec` and `arrays`.

    Arguments: those of `ImageDataModule`.
    """

    @abstractmethod
    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns images `(N, H, W) or (N, H, W, C) uint8` and targets `(N,)`, or None for a split to be cut."""

    def load(self, split: str) -> MemoryImages | None:
        if (arrays := self.arrays(split)) is None:
            return None
        images = torch.from_numpy(np.array(arrays[0]))
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return MemoryImages(in_channels(images, self.spec), torch.from_numpy(np.array(arrays[1])).long())

    def part(self, dataset: ImageDataset, indices: np.ndarray, training: bool) -> MemoryImages:
        assert isinstance(dataset, MemoryImages)
        index = torch.from_numpy(indices)
        transform = worker_transform(self.augment, self.spec) if training else None
        return MemoryImages(dataset.stored[index], dataset.targets[index], transform)


def in_channels(images: Tensor, spec: DataSpec) -> Tensor:
    """Returns uint8 images with the channels that the spec asks for: grey from colour or colour from grey."""
    if images.shape[-3] == spec.channels:
        return images
    if spec.channels == 1:
        return F.rgb_to_grayscale(images)
    return F.grayscale_to_rgb(images)
