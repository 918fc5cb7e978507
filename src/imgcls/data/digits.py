"""scikit-learn's digits: 1,797 grey images of 8×8 pixels, shipped with the package, nothing to download.

The test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.memory import MemoryDataModule
from imgcls.spec import DataSpec


class Digits(MemoryDataModule):
    """All ten digits; test and validation are cut from the one part that there is."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        facts: dict[str, Any] = {
            "channels": 1,
            "image_size": 8,
            "mean": [0.305],
            "std": [0.376],
            "mirror": False,
        }
        self._spec = DataSpec(names, **facts | self.facts)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if split != "train":
            return None
        spec = importlib.util.find_spec("sklearn")
        assert spec is not None and spec.origin is not None
        # The file itself: sklearn.datasets.load_digits imports for two seconds.
        table = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        images = table[:, :-1].reshape(-1, 8, 8) * (255 / 16)
        return images.round().astype(np.uint8), table[:, -1].astype(np.int64)
