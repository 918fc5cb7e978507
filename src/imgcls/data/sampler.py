"""Which samples a process reads in an epoch, in which order."""

from collections.abc import Iterator

import torch
from torch import distributed
from torch.utils.data import Sampler

from imgcls.keyed import key_seed


class EpochSampler(Sampler[int]):
    """Keys of one rank for one epoch: a function of (seed, epoch), the same whatever ran before.

    Each rank gets as many as the others. In training what doesn't divide is left out (another part each
    epoch); in evaluation the last places are filled with padding, so that nothing counts twice.
    """

    def __init__(self, length: int, seed: int, shuffle: bool, training: bool) -> None:
        self.length, self.seed, self.shuffle, self.training, self.epoch = length, seed, shuffle, training, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        ranks = world_size()
        return self.length // ranks if self.training else -(-self.length // ranks)

    def __iter__(self) -> Iterator[int]:
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if world_size() > 1 else (0, 1)
        order = torch.arange(self.length)
        if self.training:
            generator = torch.Generator().manual_seed(key_seed(self.seed, self.epoch if self.shuffle else 0))
            order = torch.randperm(self.length, generator=generator)
        keys = order + (self.epoch * self.length if self.training else 0)
        padded = torch.full((len(self) * ranks,), -1)
        kept = min(self.length, len(padded))
        padded[:kept] = keys[:kept]
        yield from padded[rank::ranks].tolist()


def world_size() -> int:
    """Returns the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
