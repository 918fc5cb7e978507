"""Small sets: all images in one uint8 tensor, a batch fetched in one gather."""

from abc import abstractmethod
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from imgcls.augment import worker_transform
from imgcls.data.base import Batch, ImageDataModule, ImageDataset
from imgcls.data.sampler import EpochSampler
from imgcls.data.spec import DataSpec
from imgcls.errors import UserError


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
            torch.default_generator.manual_seed(self.sample_seed(key))  # torch.manual_seed takes 0.15 ms
            out.append(self.transform(image))
        return torch.stack(out)

    def picture(self, index: int) -> Tensor:
        return self.stored[index].cpu()

    def to(self, device: torch.device) -> None:
        """Moves images and targets to a device; from then on batches are made there."""
        self.stored, self.targets, self.device = self.stored.to(device), self.targets.to(device), device


class MemoryDataModule(ImageDataModule):
    """A set that fits in memory. A subclass gives `spec` and `arrays`.

    Args:
        device: where each process keeps its images and makes its batches, the kind of device that it trains on;
            null: in the host's memory, and each batch is sent.
        Other arguments: `ImageDataModule`.
    """

    def __init__(self, *, device: Literal["cpu", "cuda"] | None = None, **common: object) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("data.device=cuda: there is no CUDA device here; expected one, or data.device=null")
        if device is not None and self.num_workers:
            raise UserError(
                f"data.device={device} with data.num_workers={self.num_workers}: there is nothing for workers to do; "
                "expected data.num_workers=0, or data.device=null"
            )
        self.device = device

    def setup(self, stage: str | None = None) -> None:
        if self.device is not None and worker_transform(self.augment, self.spec) is not None:
            raise UserError(
                f"data.device={self.device}: a resized crop and augment.policy work image by image, in workers; "
                "choose data.device=null, or an augment without them such as augment=standard"
            )
        super().setup(stage)

    def _loader(self, split: str, sampler: EpochSampler, drop_last: bool) -> DataLoader[Batch]:
        if self.device is not None:
            images = self.sets[split]
            assert isinstance(images, MemoryImages)
            images.to(self._training_device(self.device))
        return super()._loader(split, sampler, drop_last)

    def _training_device(self, kind: str) -> torch.device:
        if self.trainer is None:
            return torch.device(kind)
        found = self.trainer.strategy.root_device  # of this rank
        if found.type != kind:
            raise UserError(f"data.device={kind}: training is on {found.type}; expected the same, or data.device=null")
        return found

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
