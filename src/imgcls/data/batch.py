"""Batch: what a loader yields. ImageDataset: base class of a split, which makes whole batches."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from imgcls.seeding import key_seed

T = TypeVar("T")


class Batch(NamedTuple):
    """`images (N, C, H, W) uint8`, `targets (N,) int64`, `indices (N,) int64` into the split's dataset.

    A target of -1 is padding: it keeps the ranks of a distributed evaluation in step and counts nowhere.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


class ImageDataset(Dataset[Batch]):
    """A split. A key is `round * len(self) + index`, an ordinary int that tells a worker the round too: the
    epoch, or where a sample comes several times in an epoch `epoch * repeats + repetition`.

    So the draws for a sample are a function of (seed, round, index), whichever worker makes them.
    Negative keys are padding.
    """

    targets: Tensor  # (N,) int64
    seed: int = 0
    transform: nn.Module | None = None  # of one image, in the workers
    device = torch.device("cpu")  # where batches are made

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        key = torch.as_tensor(keys)
        if self.device.type != "cpu":  # nothing is read back: the host runs ahead of the device
            key = (key.pin_memory() if self.device.type == "cuda" else key).to(self.device, non_blocking=True)
        index = key.clamp_min(0) % len(self)
        targets = self.targets[index].masked_fill_(key < 0, -1)
        return Batch(self.images(key.clamp_min(0)), targets, index)

    def __getitem__(self, key: int) -> Batch:
        return self.__getitems__([key])

    @abstractmethod
    def images(self, keys: Tensor) -> Tensor:
        """Returns the images `(N, C, H, W) uint8` of a batch of keys."""

    @abstractmethod
    def picture(self, index: int) -> Tensor:
        """Returns one image `(C, H, W) uint8` as evaluation sees it."""

    def part(self, indices: Tensor) -> Self:
        """Returns the samples at `indices (M,) int64`, to be read as in evaluation."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Returns the name by which a person finds the sample: its path, or its place in the set."""
        return str(index)

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yields bytes that, with the targets, tell this split from another and are read at once."""
        yield b""

    def sample_seed(self, key: int) -> int:
        """Returns the seed of all draws for a key."""
        return key_seed(self.seed, *divmod(key, len(self)))

    def transformed(self, keys: Tensor, images: Iterable[Tensor]) -> Tensor:
        """Returns images after `transform`, for each with the draws that its key gives it."""
        out = []
        for key, image in zip(keys.tolist(), images, strict=True):
            torch.default_generator.manual_seed(self.sample_seed(key))  # torch.manual_seed takes 0.15 ms
            out.append(self.transform(image) if self.transform is not None else image)
        return torch.stack(out)


def keep_batch(batch: T) -> T:
    """Collates what is a batch already, because `__getitems__` made it whole."""
    return batch


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Returns uint8 images with so many channels: makes grey from colour, or colour from grey."""
    if images.shape[-3] == channels:
        return images
    return F.rgb_to_grayscale(images) if channels == 1 else F.grayscale_to_rgb(images)
