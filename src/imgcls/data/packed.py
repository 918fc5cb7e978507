"""Sets that `imgcls pack` made: all pixels or JPEGs of a split in one file, mapped into memory, and a table.

manifest.json   what the set is, and the size and checksum of each other file
train.npy       the table: a `RECORD` and a name for each image
train.bin       the images, one after another; pixels as (H, W, C)
"""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from imgcls.augment import worker_transform
from imgcls.data.base import ImageDataModule, ImageDataset, cores
from imgcls.data.decode import UnreadableImage
from imgcls.data.imagefolder import FolderImages, evaluation_transform
from imgcls.data.memory import in_channels
from imgcls.data.spec import DataSpec
from imgcls.data.torchvision_sets import per_channel
from imgcls.errors import UserError

VERSION = 1
RECORD = [("offset", "<i8"), ("bytes", "<i8"), ("height", "<i4"), ("width", "<i4"), ("label", "<i8")]


class Pack:
    """The mapped files of a split: all workers read the same pages. One that is not forked maps them again.

    Args:
        pixels: the shape `(H, W, C)` of a stored image, 0 for what differs between images; None: they are JPEGs.
    """

    def __init__(self, root: Path, split: str, pixels: list[int] | None) -> None:
        self.made_from = root, split, pixels
        self.root, self.split, self.pixels = root, split, pixels
        self.records = np.load(root / f"{split}.npy", mmap_mode="r").view(np.ndarray)
        with warnings.catch_warnings():  # torch warns of memory that can't be written to
            warnings.filterwarnings("ignore", message=".*not writable")
            self.content = torch.from_numpy(np.memmap(root / f"{split}.bin", np.uint8, mode="r").view(np.ndarray))
        self.alike = self.content.view(-1, *pixels) if pixels and all(pixels) else None  # (N, H, W, C), one gather

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.made_from

    def image(self, index: int, channels: int) -> Tensor:
        """Returns an image `(C, H, W) uint8`; of pixels, a view of the file."""
        offset, count, height, width = self.records[index].tolist()[:4]
        content = self.content[offset : offset + count]
        if self.pixels:
            return content.view(height, width, self.pixels[2]).permute(2, 0, 1)
        return decode_jpeg(content, channels, f"{self.root / self.split}.bin", self.records["name"][index])


def decode_jpeg(content: Tensor, channels: int, where: str, name: bytes) -> Tensor:
    """Returns the image of a JPEG's bytes as `(C, H, W) uint8`, as data/decode.py reads the file."""
    try:
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        return decode_image(content, mode, apply_exif_orientation=True)
    except RuntimeError as error:
        raise UnreadableImage(
            f"{where}: the image {os.fsdecode(name)} is damaged; data.verify=true finds damaged files; pack again"
        ) from error


class PackedImages(FolderImages):
    """The images of a pack at `order (N,) int64`, each brought to a square of `spec.image_size`."""

    def __init__(self, pack: Pack, order: Tensor, spec: DataSpec) -> None:
        self.pack, self.order, self.spec = pack, order, spec
        self.targets = torch.from_numpy(pack.records["label"][order.numpy()])
        self.evaluate = self.transform = evaluation_transform(spec)

    @property
    def as_stored(self) -> bool:
        """Whether no image needs anything done to it."""
        size = self.spec.image_size
        fits = self.pack.alike is not None and self.pack.alike.shape[1:3] == (size, size)
        return fits and self.transform is self.evaluate and round(size / self.spec.crop_ratio) == size

    def images(self, keys: Tensor) -> Tensor:
        if not self.as_stored:
            return super().images(keys)
        assert self.pack.alike is not None
        return in_channels(self.pack.alike[self.order[keys % len(self)]].permute(0, 3, 1, 2), self.spec)

    def read(self, index: int) -> Tensor:
        return in_channels(self.pack.image(int(self.order[index]), self.spec.channels), self.spec)

    def name(self, index: int) -> str:
        return os.fsdecode(self.pack.records["name"][int(self.order[index])])


class PackedData(ImageDataModule):
    """A set that `imgcls pack` made, as pixels or JPEG. Splits that it lacks are cut as from the folder.

    Args:
        root: the directory of the pack.
        verify: compare the checksum of each file before anything is read.
        image_size, channels, mean, std, crop_ratio, interpolation, mirror: as in `DataSpec`; null: as packed.
        Other arguments: `ImageDataModule`; a null fraction: as packed.

    Raises:
        UserError: no pack there, one of another version or format, a file missing, cut or changed.
    """

    formats: tuple[str, ...] = ("pixels", "jpeg")

    def __init__(
        self,
        *,
        root: str,
        verify: bool = False,
        image_size: int | None = None,
        channels: Literal[1, 3] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        crop_ratio: float | None = None,
        interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None,
        mirror: bool | None = None,
        val_fraction: float | None = None,
        test_fraction: float | None = None,
        **common: object,
    ) -> None:
        self.root, self.verify = self.place(root), verify
        self.manifest = read_manifest(self.root, self.formats)
        cuts = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        common |= {name: self.manifest[name] if share is None else share for name, share in cuts.items()}
        super().__init__(**common)  # type: ignore[arg-type]
        given = {
            "image_size": image_size, "channels": channels, "mean": mean, "std": std,
            "crop_ratio": crop_ratio, "interpolation": interpolation, "mirror": mirror,
        }  # fmt: skip
        facts = {**self.manifest["spec"], **{name: value for name, value in given.items() if value is not None}}
        statistics = {name: per_channel(list(facts[name]), facts["channels"]) for name in ("mean", "std")}
        self._spec = DataSpec(**{**facts, **statistics, "class_names": tuple(facts["class_names"])})

    def place(self, root: str) -> Path:
        """Returns the local directory with the manifest."""
        return Path(root).expanduser()

    def prepare_data(self) -> None:
        check_files(self.root, self.manifest["files"], self.verify)

    def load(self, split: str) -> PackedImages | None:
        if split not in self.manifest["splits"]:
            return None
        shape = self.manifest["splits"][split]["shape"] if self.manifest["format"] == "pixels" else None
        pack = Pack(self.root, split, shape)
        return PackedImages(pack, torch.arange(len(pack.records)), self.spec)

    def part(self, dataset: ImageDataset, indices: np.ndarray, training: bool) -> PackedImages:
        assert isinstance(dataset, PackedImages)
        out = type(dataset)(dataset.pack, dataset.order[torch.from_numpy(indices)], self.spec)
        if training and (self.augment.policy is not None or self.augment.crop_of(self.spec) == "resized"):
            transform = worker_transform(self.augment, self.spec, out.evaluate)
            assert transform is not None
            out.transform = transform
        return out

    def default_workers(self) -> int:
        gathered = all(isinstance(images, PackedImages) and images.as_stored for images in self.sets.values())
        return 0 if gathered else min(cores(), 16)


def read_manifest(root: Path, formats: tuple[str, ...]) -> dict[str, Any]:
    """Returns the manifest of a pack that has one of `formats`."""
    advice = "expected a directory that `imgcls pack` made"
    try:
        manifest: dict[str, Any] = json.loads((root / "manifest.json").read_text())
        version, found = manifest["version"], manifest["format"]
    except FileNotFoundError as error:
        raise UserError(f"data.root={root}: there is no manifest.json; {advice}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / 'manifest.json'} can't be read ({type(error).__name__}); {advice}") from error
    if version != VERSION:
        raise UserError(f"data.root={root} is a pack of version {version}; this is version {VERSION}: pack it again")
    if found not in formats:
        other = "streaming" if found == "litdata" else "packed"
        raise UserError(f"data.root={root} is packed as {found}; expected {' or '.join(formats)}; set data={other}")
    return manifest


def check_files(root: Path, files: dict[str, dict[str, Any]], verify: bool) -> None:
    """Raises UserError where a file is not as the manifest says: its size, and with `verify` its checksum."""
    for name, expected in files.items():
        path = root / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes instead of {expected['bytes']:,}"
            raise UserError(f"{path} {found}; copy the pack again or make it again")
        if verify:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    raise UserError(f"{path} is damaged: its checksum is another; copy the pack again or make it again")
