"""ShareSampler: the order of an epoch in which each class has a share that the user chooses."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from imgcls.data.batch import EpochSampler
from imgcls.data.loading.splits import class_counts
from imgcls.errors import UserError
from imgcls.seeding import key_seed

Sampling = Literal["uniform", "balanced", "sqrt"]
POWERS = {"uniform": 1.0, "balanced": 0.0, "sqrt": 0.5}
SHOWN = 10  # classes in the log


def check_sampling(sampling: Sampling, targets: Tensor) -> None:
    """Raises UserError where images have no classes, or several, of which a share could be chosen."""
    if sampling != "uniform" and (targets.ndim > 1 or targets.is_floating_point()):
        given = "measures" if targets.is_floating_point() else "several labels for an image"
        raise UserError(f"data.sampling={sampling}: the data has {given}; expected one class")


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


def random_bits(keys: np.ndarray, seed: int) -> np.ndarray:
    """Returns 64 random bits for each of `keys (n,) int64`, a function of (seed, key): those of SplitMix64
    (Steele et al. 2014) at these places of its stream."""
    with np.errstate(over="ignore"):
        bits = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


class ShareSampler(EpochSampler):
    """An `EpochSampler` whose epochs are as long as the split, with a chosen share of each class.

    Nothing is left to luck: after each epoch a class has had its share of all samples so far, to within one
    (of those drawn: which of them lie beyond the last whole batch, and are left out, is luck).
    Of a class the images come in turn, in an order drawn anew in each turn, so that they come equally often.
    The turn is the round in a key: an image that comes several times in an epoch is augmented anew each time.
    """

    def __init__(self, targets: Tensor, seed: int, shuffle: bool, sampling: Sampling) -> None:
        super().__init__(len(targets), seed, shuffle, training=True)
        targets = targets.cpu()
        counts = class_counts(targets, 0)
        self.shares, self.counts = shares(counts, sampling), counts.numpy()
        self.by_class = targets.argsort(stable=True).numpy()

    def training_keys(self) -> Tensor:
        epoch = self.epoch if self.shuffle else 0
        keys = torch.from_numpy(self.drawn(epoch))
        generator = torch.Generator().manual_seed(key_seed(self.seed, epoch))
        keys = keys[torch.randperm(self.length, generator=generator)]
        # Without shuffling each epoch has the order of the first, and draws of its own.
        return keys if self.shuffle else keys + self.epoch * self.length * self.length

    def drawn(self, epoch: int) -> np.ndarray:
        """Returns the keys of an epoch, class after class: each class goes on in its turns from where it was
        after the epochs before."""
        start, end = (apportioned(self.shares, self.length * (epoch + past)).numpy() for past in (0, 1))
        sizes = np.maximum(self.counts, 1)
        first = start // sizes
        turns = -(-end // sizes) - first  # that the epoch has a part of
        rows = turns * self.counts
        label = np.repeat(np.arange(len(sizes)), rows)
        place = np.arange(len(label)) - np.repeat(rows.cumsum() - rows, rows)  # within the rows of its class
        turn, member = place // sizes[label], place % sizes[label]
        index = self.by_class[np.repeat(self.counts.cumsum() - self.counts, rows) + member]
        keys = (first[label] + turn) * self.length + index
        group = (turns.cumsum() - turns)[label] + turn  # a class in a turn; within it the order is drawn
        width = int(turns.sum()).bit_length()
        drawn = random_bits(keys, key_seed(self.seed, 1)) >> np.uint64(width)
        order = (group.astype(np.uint64) << np.uint64(64 - width) | drawn).argsort(kind="stable")
        place += (first * sizes)[label]  # over all epochs
        return keys[order][(place >= start[label]) & (place < end[label])]


def in_words(counts: Sequence[int], names: Sequence[str], sampling: Sampling) -> str:
    """Returns how many images the classes have, and how many of an epoch's samples the sampling gives them;
    of many classes the largest and the smallest."""
    expected = (shares(torch.tensor(counts), sampling) * sum(counts)).tolist()
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    words = [f"{names[i]} {counts[i]:,} → {expected[i]:,.1f}" for i in order]
    if len(words) > SHOWN:
        words[SHOWN // 2 : -SHOWN // 2] = ["…"]
    return ", ".join(words)
