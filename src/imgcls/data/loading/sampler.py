"""EpochSampler: chooses the samples that a process reads in an epoch, and their order."""

from collections.abc import Iterator

import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from imgcls.processes import world_size
from imgcls.seeding import key_seed


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
        keys = self._training_keys() if self.training else torch.arange(self.length)
        padded = torch.full((len(self) * ranks,), -1)
        kept = min(self.length, len(padded))
        padded[:kept] = keys[:kept]
        first, self.skip = self.skip, 0
        yield from padded[rank::ranks].tolist()[first:]

    def _training_keys(self) -> Tensor:
        """Returns the keys of all ranks, `(length,) int64`; see `ImageDataset` for what a key is."""
        turn, part = divmod(self.epoch, self.repeats)
        generator = torch.Generator().manual_seed(key_seed(self.seed, turn if self.shuffle else 0))
        order = torch.randperm(self.length, generator=generator)
        samples = -(-self.length // self.repeats)
        index = order.roll(-part * samples)[:samples].repeat_interleave(self.repeats)
        rounds = self.epoch * self.repeats + torch.arange(self.repeats).repeat(samples)
        return (rounds * self.length + index)[: self.length]
