"""The sets that lie in memory: from which files they are read, and what is said where those are missing."""

import gzip
import pickle
import re
import struct
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from imgcls.config.build import build
from imgcls.data.digits import Digits
from imgcls.data.memory import MemoryDataModule, MemoryImages
from imgcls.data.module import SPLITS
from imgcls.data.torchvision_sets import TorchvisionImages
from imgcls.errors import UserError
from imgcls.spec import per_channel

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def stored(data: MemoryDataModule, split: str) -> torch.Tensor:
    images = data.sets[split]
    assert isinstance(images, MemoryImages)
    return images.stored


# digits


@pytest.mark.parametrize("channels", [1, 3])
def test_digits(channels: Literal[1, 3]) -> None:
    from sklearn.datasets import load_digits

    data = Digits(channels=channels)
    data.setup()
    assert sum(len(data.sets[split]) for split in SPLITS) == 1797
    images = stored(data, "train")
    assert images.shape[1:] == (channels, 8, 8) and images.dtype == torch.uint8
    assert int(images.min()) == 0 and int(images.max()) == 255
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    label_of = {image.tobytes(): int(label) for image, label in zip(pixels, digits.target, strict=True)}
    assert [label_of[image[0].numpy().tobytes()] for image in images] == data.sets["train"].targets.tolist()
    assert torch.equal(images, images[:, :1].expand_as(images))


def test_the_mean_of_digits_is_that_of_the_set() -> None:
    data = Digits()
    data.setup()
    pixels = torch.cat([stored(data, split) for split in SPLITS]).float() / 255
    assert data.spec.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-3)
    assert data.spec.std[0] == pytest.approx(float(pixels.std()), abs=1e-3)
    assert not data.spec.mirror and data.spec.class_names[7] == "seven"


# Fashion-MNIST


def arrays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures of 28×28 pixels, and labels with all ten classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return pixels, (np.arange(count) % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


TRAIN, TEST = arrays(60, 0), arrays(20, 1)


def write_idx(folder: Path, zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, (*TRAIN, *TEST), strict=True):
        content = idx(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(
            gzip.compress(content) if zipped else content
        )


def fashion(root: Path, **arguments: Any) -> TorchvisionImages:
    settings: dict[str, Any] = {
        "dataset": "FashionMNIST", "root": str(root), "class_names": list("0123456789"), "mean": [0.286],
        "std": [0.353], "image_size": 28, "channels": 1, "mirror": True, "download": False,
    }  # fmt: skip
    return TorchvisionImages(**{**settings, **arguments})


def refused(data: TorchvisionImages) -> str:
    with pytest.raises(UserError) as caught:
        data.prepare_data()
        data.setup()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_from_files(tmp_path: Path, place: str, zipped: bool) -> None:
    write_idx(tmp_path / place, zipped)
    data = fashion(tmp_path)
    data.prepare_data()
    data.setup()
    assert torch.equal(stored(data, "test"), torch.from_numpy(TEST[0]).unsqueeze(1))
    assert data.sets["test"].targets.tolist() == TEST[1].tolist()
    assert len(data.sets["train"]) == 50 and len(data.sets["val"]) == 10
    label_of = {image.tobytes(): int(label) for image, label in zip(*TRAIN, strict=True)}
    for split in ("train", "val"):
        found = [label_of.pop(image.numpy().tobytes()) for image in stored(data, split)]
        assert found == data.sets[split].targets.tolist()
    assert not label_of  # each training picture is in one of the two splits


def test_grey_in_three_channels(tmp_path: Path) -> None:
    write_idx(tmp_path)
    data = fashion(tmp_path, channels=3)
    data.setup()
    assert torch.equal(stored(data, "test"), torch.from_numpy(TEST[0]).unsqueeze(1).expand(-1, 3, -1, -1))
    assert data.spec.mean == (0.286,) * 3 and data.spec.std == (0.353,) * 3


def advice(root: Path) -> str:
    return (
        f"put {', '.join(f'{name}.gz' for name in NAMES)} into {root}, or point data.root to where they are"
    )


@pytest.mark.parametrize("absent", [None, "t10k-labels-idx1-ubyte.gz"])
def test_no_files_and_no_download(tmp_path: Path, absent: str | None) -> None:
    if absent:
        write_idx(tmp_path)
        (tmp_path / absent).unlink()
    expected = f"data.root={tmp_path}: FashionMNIST is not there and data.download=false; {advice(tmp_path)}"
    assert refused(fashion(tmp_path)) == expected
    with pytest.raises(UserError, match=re.escape(expected)):
        fashion(tmp_path).setup()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("no route to host\nat all"), "no route to host"),
        (URLError("no network"), "Error downloading train-images-idx3-ubyte.gz"),
        pytest.param(TimeoutError(), "TimeoutError"),
    ],
    ids=["network", "mirrors", "silent"],
)
def test_failing_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    root = tmp_path / "new"
    message = refused(fashion(root, download=True))
    assert message == f"FashionMNIST could not be downloaded ({reason}); {advice(root)}"


def test_a_download_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(url: str, download_root: str, filename: str, md5: str) -> None:
        write_idx(Path(download_root), zipped=False)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", write)
    data = fashion(tmp_path / "new", download=True)
    data.prepare_data()
    data.setup()
    assert data.sets["test"].targets.tolist() == TEST[1].tolist()


def flipped(content: bytes) -> bytes:
    """Damages the first bytes after the header, so that nothing can be inflated."""
    return content[:10] + b"\xff" * 40 + content[50:]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: b"<html>not found</html>", id="other"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: gzip.compress(b"no idx"), id="no idx"),
        pytest.param(lambda content: gzip.compress(gzip.decompress(content)[:-5]), id="short"),
        pytest.param(flipped, id="flipped"),
    ],
)
def test_a_damaged_file(tmp_path: Path, damage: Any) -> None:
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    message = refused(fashion(tmp_path))
    assert re.fullmatch(re.escape(str(path)) + r" is damaged \(.+\); delete it and run again", message)


def test_damaged_labels(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    assert refused(fashion(tmp_path)).startswith(f"{tmp_path}/train-labels-idx1-ubyte.gz is damaged")


def test_fewer_labels_than_images(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(TRAIN[1][:40])))
    refused(fashion(tmp_path))


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_idx(tmp_path)
    message = refused(fashion(tmp_path, class_names=["a", "b"]))
    assert "has labels from 0 to 9; expected 0 to 1" in message


# CIFAR


def cifar(root: Path, **arguments: Any) -> TorchvisionImages:
    colour = {
        "dataset": "CIFAR10",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "image_size": 32,
        "channels": 3,
    }
    return fashion(root, **{**colour, **arguments})


def write_cifar(root: Path) -> dict[str, np.ndarray]:
    """Writes the official layout with 20 pictures a file; returns the pictures `(20, 3, 32, 32)` of each."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pictures = {}
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [i % 10 for i in range(20)]}))
        pictures[name] = rows.reshape(20, 3, 32, 32)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    return pictures


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)


@pytest.mark.usefixtures("any_checksum")
def test_cifar10(tmp_path: Path) -> None:
    pictures = write_cifar(tmp_path)
    data = cifar(tmp_path)
    data.prepare_data()
    data.setup()
    assert torch.equal(stored(data, "test"), torch.from_numpy(pictures["test_batch"]))
    assert data.sets["test"].targets.tolist() == [i % 10 for i in range(20)]
    assert len(data.sets["train"]) == 90 and len(data.sets["val"]) == 10
    official = {
        image.tobytes() for name, batch in pictures.items() if name != "test_batch" for image in batch
    }
    found = {image.numpy().tobytes() for split in ("train", "val") for image in stored(data, split)}
    assert found == official


@pytest.mark.usefixtures("any_checksum")
def test_colour_in_one_channel(tmp_path: Path) -> None:
    pictures = write_cifar(tmp_path)
    data = cifar(tmp_path, channels=1)
    data.setup()
    luma = (pictures["test_batch"] * np.array([0.2989, 0.587, 0.114])[:, None, None]).sum(1, keepdims=True)
    grey = stored(data, "test")
    assert grey.shape == (20, 1, 32, 32) and np.abs(grey.numpy() - luma).max() <= 1
    assert list(data.spec.mean) == pytest.approx([0.4])


def test_cifar10_with_wrong_checksums(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    message = refused(cifar(tmp_path, download=True))
    assert message.startswith(f"{tmp_path}/cifar-10-batches-py is damaged (") and message.endswith(
        "run again"
    )


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_no_cifar_and_no_download(tmp_path: Path, name: str) -> None:
    message = refused(cifar(tmp_path, dataset=name))
    assert (
        f"{name} is not there and data.download=false; put cifar-10" in message and str(tmp_path) in message
    )


def test_a_set_that_there_is_not() -> None:
    with pytest.raises(
        UserError, match="data.dataset=SVHN: input should be 'FashionMNIST', 'CIFAR10' or 'CIFAR100'"
    ):
        build({"_target_": "imgcls.data.torchvision_sets.TorchvisionImages", "dataset": "SVHN"}, "data")


@pytest.mark.parametrize(
    ("numbers", "channels", "expected"),
    [([0.1, 0.2], 2, (0.1, 0.2)), ([0.5], 3, (0.5,) * 3), ([0.2, 0.4, 0.6], 1, (pytest.approx(0.4),))],
)
def test_per_channel(numbers: list[float], channels: int, expected: tuple[float, ...]) -> None:
    assert per_channel(numbers, channels) == expected


def test_per_channel_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="2 numbers for 3 channels"):
        per_channel([0.1, 0.2], 3)
