"""Digits source: scikit-learn's 1,797 grey images of 8×8 pixels, which are installed with the package.

They are the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).

This is also the shortest example of a source. `__init__` takes the common arguments and sets `spec`; the
facts that a config gives (`self.facts`) replace the set's own. `arrays` returns the images and targets of a
split, or None for a split that is to be cut from train.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.memory import MemoryDataModule
from imgcls.spec import DataSpec

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FACTS: dict[str, Any] = {"channels": 1, "image_size": 8, "mean": [0.305], "std": [0.376], "mirror": False}


class Digits(MemoryDataModule):
    """All ten digits; test and validation are cut from train. Arguments: those of `MemoryDataModule`."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.spec = DataSpec(NAMES, **FACTS | self.facts)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if split != "train":
            return None
        package = importlib.util.find_spec("sklearn")
        assert package is not None and package.origin is not None
        # The file itself, because sklearn.datasets.load_digits imports for two seconds.
        path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        table = np.loadtxt(path, delimiter=",")
        images = table[:, :-1].reshape(-1, 8, 8) * (255 / 16)
        return images.round().astype(np.uint8), table[:, -1].astype(np.int64)
