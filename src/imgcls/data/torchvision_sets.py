"""TorchvisionImages source: Fashion-MNIST, CIFAR-10 and CIFAR-100, downloaded by torchvision."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from filelock import FileLock
from torchvision import datasets

from imgcls.data.memory import MemoryDataModule
from imgcls.data.module import Place
from imgcls.errors import UserError
from imgcls.spec import DataSpec

IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
FILES = {"FashionMNIST": IDX, "CIFAR10": ["cifar-10-batches-py"], "CIFAR100": ["cifar-100-python"]}
Name = Literal["FashionMNIST", "CIFAR10", "CIFAR100"]
STATISTICS = {  # mean and deviation of the training images
    "FashionMNIST": {"mean": [0.2860], "std": [0.3530]},
    "CIFAR10": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]},
    "CIFAR100": {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]},
}
T = TypeVar("T")


class TorchvisionImages(MemoryDataModule):
    """A small set of torchvision's, with the official test split; validation is cut from train.

    Args:
        dataset: a class of torchvision.datasets: FashionMNIST, CIFAR10 or CIFAR100.
        root: where the files lie or are downloaded to; those of Fashion-MNIST may be gzipped.
        download: false never goes to the network.
        class_names: in the order of the labels.
        Other arguments: `MemoryDataModule`; image_size and channels must be given.
    """

    def __init__(
        self, *, dataset: Name, root: Place, class_names: list[str], download: bool = True, **common: Any
    ) -> None:
        super().__init__(**common)
        self.dataset, self.root, self.download = dataset, Path(root).expanduser(), download
        self.spec = DataSpec(class_names, **STATISTICS[dataset] | self.facts)

    def find(self, name: str) -> Path | None:
        folders = (self.root, self.root / "raw", self.root / self.dataset / "raw")
        paths = (folder / f"{name}{ending}" for folder in folders for ending in (".gz", ""))
        return next((path for path in paths if path.exists()), None)

    def prepare_data(self) -> None:
        if all(self.find(name) for name in FILES[self.dataset]):
            return
        ending = ".gz" if self.dataset == "FashionMNIST" else ""
        names = ", ".join(f"{name}{ending}" for name in FILES[self.dataset])
        advice = f"put {names} into {self.root}, or point data.root to where they are"
        if not self.download:
            absent = f"{self.dataset} is not there and data.download=false"
            raise UserError(f"data.root={self.root}: {absent}; {advice}")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{self.dataset}.lock"):  # several processes may start at once
                getattr(datasets, self.dataset)(self.root, download=True)
        except (OSError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":. ")
            raise UserError(f"{self.dataset} could not be downloaded ({reason}); {advice}") from error

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if split == "val":
            return None
        self.prepare_data()
        if self.dataset == "FashionMNIST":
            names = IDX[:2] if split == "train" else IDX[2:]
            images, targets = (self.read(name, read_idx) for name in names)
            if len(images) != len(targets):
                fault = f"{self.root} has {len(images)} {split} images and {len(targets)} labels"
                raise UserError(f"{fault}; fetch them again")
            return images, targets
        kind = getattr(datasets, self.dataset)
        loaded = self.read(FILES[self.dataset][0], lambda path: kind(path.parent, train=split == "train"))
        return loaded.data, np.asarray(loaded.targets)

    def read(self, name: str, how: Callable[[Path], T]) -> T:
        """Reads a file; an error of its content becomes a UserError."""
        path = self.find(name)
        assert path is not None
        try:
            return how(path)
        except (OSError, EOFError, ValueError, RuntimeError, KeyError, zlib.error) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is damaged ({reason}); delete it and run again") from error


def read_idx(path: Path) -> np.ndarray:
    """Returns the array in an IDX file of unsigned bytes, gzipped or not (format: LeCun's MNIST page)."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("no IDX file of bytes")
    shape = np.frombuffer(content, ">i4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
