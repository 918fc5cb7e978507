"""Regression: numbers of a picture, here the radius of a disc."""

from typing import Any

import numpy as np
import torch

import imgcls


class Regression(imgcls.Task):
    """Names a number for each picture; targets are floats `(N,)`.

    Args:
        beta: up to this error the loss is a square, above it is linear (Huber 1964).
        Other arguments: those of `imgcls.Task`.
    """

    def __init__(self, *args: Any, beta: float = 1.0, **common: Any) -> None:
        super().__init__(*args, **common)
        self.beta = beta

    def outputs(self) -> int:
        return 1

    def compute(self, batch: imgcls.Batch, stage: imgcls.Stage) -> imgcls.Outputs:
        images, targets = batch.images, batch.targets.float()
        inputs = self.augmented(images, targets)[0] if stage == "train" else self.normalise(images)
        found = self.run(inputs)[0][:, 0]
        loss = torch.nn.functional.smooth_l1_loss(found, targets, beta=self.beta)
        return imgcls.Outputs(loss, found, targets)

    def check_targets(self, targets: torch.Tensor) -> None:
        if targets.ndim != 1 or not targets.is_floating_point():
            raise imgcls.UserError("the data has classes or labels; expected one float for each picture")

    @classmethod
    def measures(cls, spec: imgcls.DataSpec) -> imgcls.Measures:
        """Metrics of the config get found numbers and targets, such as these."""
        return imgcls.Measures(example=(torch.rand(4), torch.rand(4)))


class Discs(imgcls.MemoryDataModule):
    """Pictures of one disc each on noise; the target is its radius in pixels.

    Args:
        count: how many pictures there are.
        Other arguments: those of `imgcls.MemoryDataModule`.
    """

    def __init__(self, count: int = 500, **common: Any) -> None:
        super().__init__(**common)
        self.count = count
        facts: dict[str, Any] = {"channels": 1, "image_size": 16, "mean": [0.3], "std": [0.3]}
        self.spec = imgcls.DataSpec((), **facts | self.facts)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if split != "train":
            return None
        generator = np.random.default_rng(0)
        images = generator.integers(0, 100, (self.count, 16, 16), np.uint8)
        radii = generator.uniform(1, 6, self.count).astype(np.float32)
        rows, columns = np.mgrid[:16, :16]
        for image, radius in zip(images, radii, strict=True):
            row, column = generator.integers(6, 10, 2)
            image[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 255
        return images, radii
