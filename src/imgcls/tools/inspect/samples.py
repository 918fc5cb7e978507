"""Samples of `imgcls inspect`: makes training images as the network sees them."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from imgcls.augment import BatchAugment
from imgcls.data.batch import EpochSampler
from imgcls.data.module import ImageDataModule


def draw_samples(data: ImageDataModule, unreadable: set[str], number: int) -> list[tuple[Tensor, str]]:
    """Returns training images `(C, H, W) uint8` as the network sees them, not normalised, and their labels.

    There are fewer than `number` where fewer images can be read."""
    dataset, spec = data.sets["train"], data.spec
    order = EpochSampler(len(dataset), data.seed, shuffle=True, training=True)
    keys = list(islice((key for key in order if dataset.name(key) not in unreadable), number))
    if not keys:
        return []
    images, targets, _ = dataset.__getitems__(keys)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    augment = BatchAugment(data.augment, spec)
    mixed, shares = augment.mix((augment.pixels(images) / 255 - mean) / std, targets)
    if shares.ndim == 1:
        shares = torch.eye(spec.num_classes)[targets]
    pixels = ((mixed * std + mean) * 255).round().clamp(0, 255).byte()
    labels = [label(row, spec.class_names) for row in shares.tolist()]
    return list(zip(pixels, labels, strict=True))


def label(shares: list[float], names: Sequence[str]) -> str:
    """Returns the class of an image; of a mixed one each class with its share."""
    parts = [(share, name) for share, name in zip(shares, names, strict=True) if share > 0.005]
    return " + ".join(name if len(parts) == 1 else f"{share:.2f} {name}" for share, name in parts)
