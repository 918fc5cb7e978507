"""Batch: what a loader yields. ImageDataset: base class of a split. EpochSampler: its order."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as F

from imgcls.processes import world_size
from imgcls.seeding import key_seed
from imgcls.spec import DataSpec

T = TypeVar("T")


class Batch(NamedTuple):
    """Samples as the host, or the workers, hand them to the device.

    `valid` is false for padding, which keeps the ranks of a distributed evaluation in step, and for images
    that can't be read: these count nowhere. In training all samples are valid.
    """

    images: Tensor  # (N, C, H, W) uint8, or (N, V, C, H, W) where a transform makes V views
    targets: Tensor  # (N,) int64: classes; (N, K) int64: 1 for the labels that hold; floats: measures
    indices: Tensor  # (N,) int64 into the split's dataset
    valid: Tensor  # (N,) bool


class ImageDataset(Dataset[Batch]):
    """A split. A key is `round * len(self) + index`, an ordinary int that tells a worker the round too: the
    epoch, or where a sample comes several times in an epoch `epoch * repeats + repetition`.

    So the draws for a sample are a function of (seed, round, index), whichever worker makes them.
    Negative keys are padding.
    """

    targets: Tensor  # as in `Batch`, of the whole split
    groups: Tensor | None = None  # (N,) int64: samples of a group come into one split, where splits are cut
    seed: int = 0
    transform: Callable[[Tensor], Tensor] | None = None  # of one image, in the workers; may make V views
    device = torch.device("cpu")  # where batches are made

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        key = torch.as_tensor(keys)
        if self.device.type != "cpu":  # nothing is read back: the host runs ahead of the device
            key = (key.pin_memory() if self.device.type == "cuda" else key).to(self.device, non_blocking=True)
        index = key.clamp_min(0) % len(self)
        return Batch(self.images(key.clamp_min(0)), self.targets[index], index, key >= 0)

    def __getitem__(self, key: int) -> Batch:
        return self.__getitems__([key])

    @abstractmethod
    def images(self, keys: Tensor) -> Tensor:
        """Returns the images `(N, C, H, W) uint8` of a batch of keys, or views `(N, V, C, H, W)`."""

    def preparation(self, spec: DataSpec) -> Callable[[Tensor], Tensor] | None:
        """Returns what brings an image to the size of `spec` in the workers; None: the device does."""
        return self.transform

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
            seed = self.sample_seed(key)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 0.15 ms
            if image.is_cuda:
                torch.cuda.default_generators[image.device.index].manual_seed(seed)
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


class EpochSampler(Sampler[int]):
    """Keys of one rank for one epoch: a function of (seed, epoch), the same whatever ran before.

    Each rank gets as many as the others. In training the samples that don't divide are left out (others in
    each epoch); in evaluation padding fills the last places, so that nothing counts twice.

    With `repeats` (Hoffer et al. 2019), an epoch has `length / repeats` samples, each so many times in a row,
    so that its copies come to different ranks; the next epochs take the samples that follow, until all came.
    """

    def __init__(self, length: int, seed: int, shuffle: bool, training: bool, repeats: int = 1) -> None:
        self.length, self.seed, self.shuffle, self.training = length, seed, shuffle, training
        self.repeats, self.epoch = repeats, 0
        self.skip = 0  # samples of each rank that the next pass leaves out: they were read before a stop

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        ranks = world_size()
        return self.length // ranks if self.training else -(-self.length // ranks)

    def __iter__(self) -> Iterator[int]:
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if world_size() > 1 else (0, 1)
        keys = self.training_keys() if self.training else torch.arange(self.length)
        padded = torch.full((len(self) * ranks,), -1)
        kept = min(self.length, len(padded))
        padded[:kept] = keys[:kept]
        first, self.skip = self.skip, 0
        yield from padded[rank::ranks].tolist()[first:]

    def training_keys(self) -> Tensor:
        """Returns the keys of an epoch of training, of all ranks, in order (see `ImageDataset`)."""
        turn, part = divmod(self.epoch, self.repeats)
        generator = torch.Generator().manual_seed(key_seed(self.seed, turn if self.shuffle else 0))
        order = torch.randperm(self.length, generator=generator)
        samples = -(-self.length // self.repeats)
        index = order.roll(-part * samples)[:samples].repeat_interleave(self.repeats)
        rounds = self.epoch * self.repeats + torch.arange(self.repeats).repeat(samples)
        return rounds * self.length + index
