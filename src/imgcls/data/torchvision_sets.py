"""Fashion-MNIST, CIFAR-10 and CIFAR-100 through torchvision's classes, held in memory."""

import gzip
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from torchvision import datasets

from imgcls.data.memory import MemoryDataModule
from imgcls.data.spec import DataSpec
from imgcls.errors import UserError


class TorchvisionImages(MemoryDataModule):
    """A small set of torchvision's, with the official test split; validation is cut from train.

    Args:
        dataset: a class of torchvision.datasets: FashionMNIST, CIFAR10 or CIFAR100.
        root: where the files lie or are downloaded to.
        download: false never goes to the network.
        class_names, mean, std, image_size, channels, mirror: as in `DataSpec`.
    """

    def __init__(
        self,
        *,
        dataset: Literal["FashionMNIST", "CIFAR10", "CIFAR100"],
        root: str,
        class_names: list[str],
        mean: list[float],
        std: list[float],
        image_size: int,
        channels: Literal[1, 3],
        mirror: bool,
        download: bool = True,
        **common: object,
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        self.dataset, self.root, self.download = dataset, Path(root).expanduser(), download
        self._spec = DataSpec(
            tuple(class_names), channels, image_size, per_channel(mean, channels), per_channel(std, channels),
            mirror=mirror,
        )  # fmt: skip

    def prepare_data(self) -> None:
        if self._files("train") and self._files("test"):
            return
        needed = _MNIST_FILES["train"] + _MNIST_FILES["test"] if self._is_mnist else [_CIFAR[self.dataset]]
        advice = f"put {', '.join(needed)} into {self.root}, or point data.root to where they are"
        if not self.download:
            raise UserError(f"data.root={self.root}: {self.dataset} is not there and data.download=false; {advice}")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{self.dataset}.lock"):  # several processes may start at once
                for train in (True, False):
                    getattr(datasets, self.dataset)(self.root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":. ")
            raise UserError(f"{self.dataset} could not be downloaded ({reason}); {advice}") from error

    @property
    def _is_mnist(self) -> bool:
        return self.dataset.endswith("MNIST")

    def _files(self, split: str) -> list[Path] | None:
        """Returns the files of a split: MNIST's in any of the places where people keep them."""
        if not self._is_mnist:
            folder = self.root / _CIFAR_FOLDER[self.dataset]
            return [folder] if folder.is_dir() else None
        for folder in (self.root, self.root / "raw", self.root / self.dataset / "raw"):
            found = []
            for name in _MNIST_FILES[split]:
                found += [path for path in (folder / name, folder / name.removesuffix(".gz")) if path.is_file()][:1]
            if len(found) == len(_MNIST_FILES[split]):
                return found
        return None

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if split == "val":
            return None
        files = self._files(split)
        if files is None:  # not prepared: say where the files are looked for
            self.prepare_data()
            files = self._files(split)
        assert files is not None
        if self._is_mnist:
            images, targets = _idx(files[0]), _idx(files[1])
        else:
            images, targets = self._cifar(files[0], split)
        if len(images) != len(targets):
            raise UserError(
                f"{files[0]} has {len(images)} images and {files[-1]} {len(targets)} labels; fetch them again"
            )
        return images, targets

    def _cifar(self, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            loaded = getattr(datasets, self.dataset)(self.root, train=split == "train")
        except (OSError, EOFError, ValueError, RuntimeError, KeyError) as error:
            raise damaged(folder, error) from error
        return loaded.data, np.asarray(loaded.targets)


def damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({' '.join(str(error).split())}); delete it and run again")


_MNIST_FILES = {
    "train": ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"],
    "test": ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
}
_CIFAR = {"CIFAR10": "cifar-10-python.tar.gz (unpacked)", "CIFAR100": "cifar-100-python.tar.gz (unpacked)"}
_CIFAR_FOLDER = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}


def _idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not (format: LeCun's MNIST page)."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if len(content) < 4 or content[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes")
        dimensions = content[3]
        shape = np.frombuffer(content, ">i4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise damaged(path, error) from error


def per_channel(numbers: list[float], channels: int) -> tuple[float, ...]:
    """Returns one number a channel: repeated for grey statistics on colour, averaged for colour on grey."""
    if len(numbers) == channels:
        return tuple(numbers)
    if len(numbers) == 1:
        return tuple(numbers) * channels
    if channels == 1:
        return (sum(numbers) / len(numbers),)
    raise UserError(f"data.mean and data.std have {len(numbers)} numbers for {channels} channels; give one for each")
