"""A set of images with several labels: a bright square for each, in a place of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from imgcls.data.memory import MemoryDataModule
from imgcls.spec import DataSpec

NAMES = ("cat", "dog", "fox", "hen", "owl")
SIDE = 8
SETS = ("task=multilabel", "data._target_=support.labels.Squares", "data.batch_size=32")


class Squares(MemoryDataModule):
    """Images of noise; each label that one has is a square of 2 pixels, some of which are faint.

    Args:
        names: the labels that an image can have, all of `NAMES` or some, in any order.
        count: of images.
        empty: whether there are images without a label.
        Other arguments: `MemoryDataModule`.
    """

    def __init__(
        self, *, names: Sequence[str] = NAMES, count: int = 400, empty: bool = True, **common: Any
    ) -> None:
        super().__init__(**common)
        self.names, self.count, self.empty = list(names), count, empty
        self.spec = DataSpec(self.names, 1, SIDE, (0.3,), (0.25,), mirror=False)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if split != "train":
            return None
        generator = np.random.default_rng(0)
        labels = generator.random((self.count, len(NAMES))) < (0.5, 0.4, 0.3, 0.2, 0.1)
        labels[:, 1] |= labels[:, 0] & (generator.random(self.count) < 0.7)  # a dog comes with many a cat
        images = generator.integers(0, 90, (self.count, SIDE, SIDE)).astype(np.uint8)
        for label in range(len(NAMES)):
            row, column = 3 * (label // 3), 3 * (label % 3)
            bright = generator.integers(60, 160, (self.count, 1, 1)) * labels[:, label, None, None]
            images[:, row : row + 2, column : column + 2] += bright.astype(np.uint8)
        targets = np.zeros((self.count, len(self.names)), np.int64)
        for place, name in enumerate(self.names):
            if name in NAMES:  # of another there is none
                targets[:, place] = labels[:, NAMES.index(name)]
        kept = slice(None) if self.empty else targets.any(1)
        return images[kept], targets[kept]
