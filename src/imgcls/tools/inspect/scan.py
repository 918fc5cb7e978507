"""Image scan of `imgcls inspect`: lists the images of a set, and reads each once, in worker processes."""

import hashlib
import itertools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from scipy.fft import dctn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from imgcls.config.check import locate
from imgcls.config.paths import shown
from imgcls.data.batch import ImageDataset
from imgcls.data.imagefolder import ImageFolder, StoredImages, exclude_list
from imgcls.data.loading.decode import MAX_PIXELS, decode, header
from imgcls.data.loading.folders import as_names, left_out, list_images, named_splits
from imgcls.data.loading.splits import SPLITS
from imgcls.data.module import ImageDataModule
from imgcls.data.rows import RowsModule
from imgcls.errors import UnreadableImage, UserError
from imgcls.tools.inspect.looks import sharpness

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of odd metadata; they name no file

COLUMNS = ["file", "split", "label"]
BATCH = 16  # images that a worker hands over at once
SIDE, LOW, THUMB = 32, 8, 8  # of what is transformed, of the frequencies that are kept, of the thumbnail
POWERS = np.stack([np.arange(256) / 255, (np.arange(256) / 255) ** 2])  # of what uint8 stands for
MIDDLE = 128  # of what sharpness is measured on


class Seen(NamedTuple):
    """What one image holds; of an unreadable one only the reason, and what its header says of its numbers."""

    reason: str | None = None
    format: str = ""
    mode: str = ""
    width: int = 0  # pixels
    height: int = 0
    mean: tuple[float, ...] = ()  # of each channel, of pixels in [0, 1]
    square: tuple[float, ...] = ()  # the mean of their squares
    digest: bytes = b""  # of all pixels
    hash: int = 0
    thumb: bytes = b""  # (C, THUMB, THUMB) uint8
    sharpness: float = float("nan")
    numbers: str = ""  # as in `Header`
    white: float = 0.0
    peak: float = 0.0


@dataclass
class Reader(Dataset[Seen]):
    """Looks at image files, as `decode` reads them. Where they don't lie in files of their own, `images` are
    splits and places."""

    paths: list[str]
    channels: int = 3
    max_pixels: int = MAX_PIXELS
    bits: int | None = None
    images: Sequence[tuple[ImageDataset, int]] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Seen:
        how, data = (self.channels, self.max_pixels, self.bits), None
        if self.images:
            dataset, place = self.images[index]
            if not isinstance(dataset, StoredImages):
                return measure(dataset.picture(place))
            data = dataset.content(place)
        return look(self.paths[index], *how, data)

    def picture(self, index: int) -> Tensor:
        """Returns the whole image `(C, H, W) uint8`."""
        if self.images:
            dataset, place = self.images[index]
            return dataset.read(place) if isinstance(dataset, StoredImages) else dataset.picture(place)
        return decode(self.paths[index], self.channels, self.max_pixels, self.bits)


@dataclass
class Listing:
    """All images of a set, and what reads them."""

    name: str
    images: pd.DataFrame  # file (relative to the root), split, label; of several labels also a list of these
    classes: pd.DataFrame  # split, label: all classes, also those without an image
    reader: Reader
    unread: list[dict[str, str]] = field(default_factory=list)  # folders that can't be read, and the reasons
    left_out: list[str] = field(default_factory=list)  # folders beside the splits


def look(
    path: str,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    data: np.ndarray | None = None,
) -> Seen:
    """Reads a file, or its bytes `data (n,) uint8`, as training does."""
    found = header(path, max_pixels, data)
    try:
        seen = measure(decode(path, channels, max_pixels, bits, data), found.format, found.mode)
    except UnreadableImage as error:
        seen = Seen(error.reason())
    return seen._replace(numbers=found.numbers, white=found.white, peak=found.peak)


def measure(image: Tensor, kind: str = "", mode: str = "") -> Seen:
    """Returns the numbers of an image `(C, H, W) uint8`."""
    height, width = image.shape[1:]
    pixels = image.permute(1, 2, 0).contiguous()  # the order in which decoders return them: nothing is copied
    columns = pixels.flatten(0, 1).numpy().T
    counts = np.array([np.bincount(column, minlength=256) for column in columns])
    mean, square = (tuple(moment) for moment in (POWERS @ counts.T / columns.shape[1]).tolist())
    digest = hashlib.sha1(repr(image.shape).encode() + pixels.numpy().tobytes(), usedforsecurity=False)
    middle = F.resize(image, [MIDDLE, MIDDLE], antialias=True) if min(height, width) > MIDDLE else image
    small = F.resize(middle, [SIDE, SIDE], antialias=True)
    low = dctn(small.float().mean(0).numpy())[:LOW, :LOW].flatten()[1:]  # without the mean brightness
    signs = int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
    thumb = F.resize(small, [THUMB, THUMB], antialias=True).numpy().tobytes()
    found = mean, square, digest.digest(), signs, thumb, sharpness(middle)
    return Seen(None, kind, mode, width, height, *found)


def scan(listing: Listing, workers: int) -> pd.DataFrame:
    """Reads all images; returns their table with the columns of `Seen`."""
    loader = DataLoader(listing.reader, BATCH, num_workers=workers, collate_fn=list)
    console, seen, total = Console(stderr=True), itertools.chain.from_iterable(loader), len(listing.images)
    rows = track(seen, "reading", total, console=console, transient=True, disable=not console.is_terminal)
    table = pd.DataFrame(rows, columns=list(Seen._fields), index=listing.images.index)
    return listing.images.join(table)


def list_files(data: ImageDataModule | None, options: dict[str, Any]) -> Listing:
    """Lists the image files of a folder set, also of one that training refuses (None). Raises UserError where
    there is no image at all, or an excluded file is none of them."""
    root, excluded = Path(options["root"]).expanduser(), exclude_list(options.get("exclude"))
    folders = data.folders if isinstance(data, ImageFolder) else named_splits(root) or {"train": root}
    kind = locate(options["_target_"], "data._target_")
    if data is None and getattr(kind, "val_is_test", False) and "val" in folders:
        folders["test"] = folders.pop("val")
    rows, labels, errors = list[tuple[str, str, str]](), list[tuple[str, str]](), list[OSError]()
    for split, folder in folders.items():
        _, names, _ = next(os.walk(folder, onerror=errors.append), ("", [], []))
        for label in sorted(name for name in names if not name.startswith(".")):
            labels.append((split, label))
            found, _ = list_images(folder, label, errors)
            rows += [(os.path.relpath(folder / file, root), split, label) for file in found]
        if not names and isinstance(data, ImageFolder):  # images in one folder, whose labels lie elsewhere
            paths, targets = data.labelled(folder)
            files = [os.path.relpath(folder / os.fsdecode(name), root) for name in as_names(paths).tolist()]
            rows += [(file, split, data.classes[i]) for file, i in zip(files, targets.tolist(), strict=True)]
            labels += [(split, label) for label in data.classes]
    if not rows:
        expected = "<class>/<image files> or {train,val,test}/<class>/…"
        raise UserError(f"{root} holds no image; expected {expected} in it")
    table, classes = pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(labels, columns=COLUMNS[1:])
    if unknown := sorted(set(excluded) - set(table["file"])):
        wrong = f"{unknown[0]!r}, which is no image of {root}"
        raise UserError(f"data.exclude names {wrong}; take the line out of it")
    table = table[~table["file"].isin(excluded)].reset_index(drop=True)
    unread = [{"folder": os.path.relpath(e.filename, root), "reason": e.strerror or str(e)} for e in errors]
    how = {key: options[key] for key in ("channels", "max_pixels", "bits") if key in options}
    reader = Reader([str(root / file) for file in table["file"]], **how)
    return Listing(shown(root), table, classes, reader, unread, left_out(root, folders.values()))


def list_rows(data: RowsModule, options: dict[str, Any]) -> Listing:
    """Lists the images of a table, in the splits of its own."""
    loaded = {split: found for split in SPLITS if (found := data.load(split)) is not None}
    names = np.array(data.spec.class_names, dtype=object)
    if not len(names):
        raise UserError(f"{options['_target_']} has measures; imgcls inspect expects classes or labels")
    parts = []
    for split, images in loaded.items():
        targets, places = images.targets.numpy(), range(len(images))
        part = pd.DataFrame({"file": [data.name_of(images, i) for i in places], "split": split})
        if targets.ndim == 1:
            part["label"] = names[targets]
        else:
            part["labels"] = [names[row.nonzero()].tolist() for row in targets]
            part["label"] = part["labels"].map(" + ".join)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    every = [(images, i) for images in loaded.values() for i in range(len(images))]
    how = {key: options[key] for key in ("channels", "max_pixels", "bits") if key in options}
    reader = Reader([images.name(i) for images, i in every], **how)
    if isinstance(data.rows, StoredImages):
        reader.images = every
    classes = pd.DataFrame(itertools.product(loaded, names), columns=COLUMNS[1:])
    return Listing(shown(data.place), table, classes, reader)


def list_memory(data: ImageDataModule, options: dict[str, Any]) -> Listing:
    """Lists the images of a set in memory, in the splits of its own."""
    loaded = {split: found for split in SPLITS if (found := data.load(split)) is not None}
    rows, names = list[tuple[str, str, str]](), data.spec.class_names
    if any(dataset.targets.ndim > 1 for dataset in loaded.values()):
        what = f"{options['_target_']} has several labels for an image"
        raise UserError(f"{what}; imgcls inspect expects data with one class for each")
    for split, dataset in loaded.items():
        rows += [(f"{split}/{i}", split, names[label]) for i, label in enumerate(dataset.targets.tolist())]
    table = pd.DataFrame(rows, columns=COLUMNS)
    images = [(dataset, i) for dataset in loaded.values() for i in range(len(dataset))]
    reader = Reader(table["file"].tolist(), data.spec.channels, images=images)
    classes = pd.DataFrame(itertools.product(loaded, names), columns=COLUMNS[1:])
    return Listing(options.get("dataset", type(data).__name__), table, classes, reader)
