"""A set with several labels for a picture: shapes of which some are there."""

from typing import Any

import numpy as np

import imgcls

NAMES = ("disc", "square", "cross")
FACTS: dict[str, Any] = {"channels": 1, "image_size": 24, "mean": [0.3], "std": [0.25]}


class SeveralShapes(imgcls.MemoryDataModule):
    """Pictures of none to all of the shapes; a label for each that is there.

    Args:
        count: how many pictures there are.
        share: how often each shape is there.
        Other arguments: those of `imgcls.MemoryDataModule`.
    """

    def __init__(self, count: int = 600, share: float = 0.4, **common: Any) -> None:
        super().__init__(**common)
        self.count, self.share = count, share
        self.spec = imgcls.DataSpec(NAMES, **FACTS | self.facts)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns images `(N, H, W) uint8` and labels `(N, K)` of 0 and 1."""
        if split != "train":
            return None
        generator = np.random.default_rng(0)
        images = generator.integers(0, 128, (self.count, 24, 24), np.uint8)
        labels = (generator.random((self.count, len(NAMES))) < self.share).astype(np.int64)
        rows, columns = np.mgrid[:24, :24]
        for image, there in zip(images, labels, strict=True):
            for shape in there.nonzero()[0]:
                row, column = generator.integers(4, 20, 2)
                down, right = abs(rows - row), abs(columns - column)
                disc, square = down**2 + right**2 <= 12, np.maximum(down, right) <= 3
                image[(disc, square, square & (np.minimum(down, right) == 0))[shape]] = 255
        return images, labels
