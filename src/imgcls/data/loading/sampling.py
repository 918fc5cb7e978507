"""ShareSampler: the order of an epoch in which each class has a share that the user chooses."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from imgcls.data.batch import EpochSampler
from imgcls.data.loading.splits import class_counts
from imgcls.seeding import key_seed

Sampling = Literal["uniform", "balanced", "sqrt"]
POWERS = {"uniform": 1.0, "balanced": 0.0, "sqrt": 0.5}
SHOWN = 10  # classes in the log


def shares(counts: Tensor, sampling: Sampling) -> Tensor:
    """Returns the share `(K,) float64` of an epoch's samples that each class has, of `counts (K,) int64`."""
    weights = counts.double().pow(POWERS[sampling]) * (counts > 0)
    return weights / weights.sum()


def apportioned(shares: Tensor, samples: int) -> Tensor:
    """Returns how many of so many samples each class has `(K,) int64`: its share, rounded down, and one more
    where the rest is largest."""
    exact = shares * samples
    whole = exact.floor().long()
    rest = torch.argsort(exact - whole, descending=True, stable=True)
    whole[rest[: samples - int(whole.sum())]] += 1
    return whole


class ShareSampler(EpochSampler):
    """An `EpochSampler` whose epochs are as long as the split, with a chosen share of each class.

    Nothing is left to luck: after each epoch a class has had its share of all samples so far, to within one.
    Of a class the images come in turn, in an order drawn anew in each turn, so that they come equally often.
    The turn is the round in a key: an image that comes several times in an epoch is augmented anew each time.
    """

    def __init__(self, targets: Tensor, seed: int, shuffle: bool, sampling: Sampling) -> None:
        super().__init__(len(targets), seed, shuffle, training=True)
        targets = targets.cpu()
        counts = class_counts(targets, 0)
        self.shares = shares(counts, sampling)
        self.members = targets.argsort(stable=True).split(counts.tolist())

    def training_keys(self) -> Tensor:
        epoch = self.epoch if self.shuffle else 0
        before, after = (apportioned(self.shares, self.length * (epoch + past)).tolist() for past in (0, 1))
        keys = torch.cat(
            [self.drawn(label, *span) for label, span in enumerate(zip(before, after, strict=True))]
        )
        generator = torch.Generator().manual_seed(key_seed(self.seed, epoch))
        keys = keys[torch.randperm(self.length, generator=generator)]
        # Without shuffling each epoch has the order of the first, and draws of its own.
        return keys if self.shuffle else keys + self.epoch * self.length * self.length

    def drawn(self, label: int, start: int, end: int) -> Tensor:
        """Returns the keys of a class from its sample `start` on, up to `end`, counted over all epochs."""
        members, keys = self.members[label], list[Tensor]()
        first, count = start // max(len(members), 1), len(members)
        for turn in range(first, -(-end // count) if count else 0):
            generator = torch.Generator().manual_seed(key_seed(self.seed, 1, label, turn))
            keys.append(turn * self.length + members[torch.randperm(count, generator=generator)])
        return torch.cat(keys)[start - first * count :][: end - start] if keys else torch.empty(0).long()


def in_words(counts: Sequence[int], names: Sequence[str], sampling: Sampling) -> str:
    """Returns how many images the classes have, and how many of an epoch's samples the sampling gives them;
    of many classes the largest and the smallest."""
    expected = (shares(torch.tensor(counts), sampling) * sum(counts)).tolist()
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    words = [f"{names[i]} {counts[i]:,} → {expected[i]:,.1f}" for i in order]
    if len(words) > SHOWN:
        words[SHOWN // 2 : -SHOWN // 2] = ["…"]
    return ", ".join(words)
