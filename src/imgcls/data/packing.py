"""Writes what data/packed.py and data/streaming.py read: the images of each split, a table, a manifest."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import encode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from imgcls.data.decode import UnreadableImage
from imgcls.data.imagefolder import FolderImages, ImageFolder
from imgcls.data.packed import RECORD, VERSION
from imgcls.data.spec import DataSpec
from imgcls.data.splits import SPLITS, check_targets
from imgcls.errors import UserError

log = logging.getLogger(__name__)


class Encoder:
    """Images as they are stored: `(bytes (n,) uint8, height, width)`, or what is wrong with one. Runs in workers."""

    def __init__(self, dataset: FolderImages, spec: DataSpec, settings: Any) -> None:
        self.dataset, self.settings = dataset, settings
        self.interpolation = InterpolationMode(spec.interpolation)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | str:
        try:
            image = self.dataset.read(index)
        except UnreadableImage as error:
            return str(error)
        size = self.settings.size
        smaller = size is not None and min(image.shape[1:]) > size
        if smaller:
            image = F.resize(image, [size], self.interpolation, antialias=True)
        height, width = image.shape[1:]
        if self.settings.format == "pixels":
            return image.permute(1, 2, 0).contiguous().view(-1), height, width
        if not smaller:  # what is a JPEG already stays as it is, and loses nothing
            content = np.fromfile(self.dataset.name(index), np.uint8)
            if content[:3].tobytes() == b"\xff\xd8\xff":
                return torch.from_numpy(content), height, width
        encoded = encode_jpeg(image.contiguous(), self.settings.quality)
        assert isinstance(encoded, Tensor)  # of one image
        return encoded, height, width


def write_pack(data: ImageFolder, folder: Path, settings: Any) -> dict[str, Any]:
    """Writes the splits of a folder set into an empty folder, the manifest last; returns the manifest.

    Only splits that the set has of its own are written: who reads them cuts the others from train. A stream
    can't be cut, so its splits are cut here.

    Raises:
        UserError: an unreadable image that is not to be skipped, a class without an image, a disk too small.
    """
    if settings.format == "litdata":
        data.setup()
        sets = {split: data.sets[split] for split in SPLITS}
    else:
        sets = {split: found for split in SPLITS if (found := data.load(split)) is not None}
    encoders = {}
    for split, dataset in sets.items():
        assert isinstance(dataset, FolderImages)
        check_targets(dataset.targets, data.spec.class_names, split)
        encoders[split] = Encoder(dataset, data.spec, settings)
    check_disk(folder, encoders.values())
    workers = data.default_workers() if data.num_workers is None else data.num_workers
    splits, skipped = {}, list[str]()
    for split, encoder in encoders.items():
        table, bad = write_split(encoder, folder, split, data.root, workers)
        skipped += bad
        check_targets(torch.from_numpy(table["label"].copy()), data.spec.class_names, split)  # after what was skipped
        splits[split] = summary(table, data.spec)
        log.info("%s: %s images", split, f"{len(table):,}")
    if skipped:
        log.warning("%s unreadable images were skipped; manifest.json lists them", f"{len(skipped):,}")
    manifest = {
        "version": VERSION, "format": settings.format, "size": settings.size,
        "quality": None if settings.format == "pixels" else settings.quality,
        "spec": asdict(data.spec), "val_fraction": data.val_fraction, "test_fraction": data.test_fraction,
        "splits": splits, "skipped": skipped, "files": files_of(folder),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    synchronize(folder / "manifest.json")
    synchronize(folder)
    return manifest


def check_disk(folder: Path, encoders: Iterable[Encoder]) -> None:
    """Raises UserError where the disk is too small for what a few images of each split say of all."""
    needed = 0.0
    for encoder in encoders:
        some = [encoder[i] for i in np.linspace(0, len(encoder) - 1, 8, dtype=int).tolist()]
        sizes = [len(stored[0]) for stored in some if not isinstance(stored, str)]
        needed += len(encoder) * sum(sizes) / max(len(sizes), 1)
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{folder.parent} has {free / 1e9:.1f} GB free; about {needed / 1e9:.1f} GB are needed: free some"
        )


def write_split(encoder: Encoder, folder: Path, split: str, root: Path, workers: int) -> tuple[np.ndarray, list[str]]:
    """Writes a split and its table; returns the table and what was skipped.

    A stream is read a shard after another, so its training images are written in an order drawn once.
    """
    stream = encoder.settings.format == "litdata"
    order = np.arange(len(encoder))
    if stream and split == "train":
        order = np.random.default_rng(0).permutation(order)
    records, names, skipped, offset = np.zeros(len(order), RECORD), list[bytes](), list[str](), 0
    loader: Iterable[Any] = DataLoader(encoder, sampler=order.tolist(), batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    if Console().is_terminal:
        loader = track(loader, split, total=len(order), transient=True)
    with writer(folder, split, stream) as write:
        for index, stored in zip(order.tolist(), loader, strict=True):
            if isinstance(stored, str):
                if encoder.settings.on_error == "refuse":
                    raise UserError(f"{stored}; mend or delete it, or set on_error=skip")
                skipped.append(stored)
                continue
            content, height, width = stored
            label = int(encoder.dataset.targets[index])
            write(len(names), content, label)
            records[len(names)] = offset, len(content), height, width, label
            names.append(os.fsencode(os.path.relpath(encoder.dataset.name(index), root)))
            offset += len(content)
    table = np.zeros(len(names), [*RECORD, ("name", f"S{max(map(len, names), default=1)}")])
    for field, *_ in RECORD:
        table[field] = records[field][: len(names)]
    table["name"] = names
    np.save(folder / f"{split}.npy", table)
    return table, skipped


@contextmanager
def writer(folder: Path, split: str, stream: bool) -> Iterator[Callable[[int, Tensor, int], object]]:
    """Yields a function of place, content and label that adds an image to a split."""
    if not stream:
        with (folder / f"{split}.bin").open("wb") as file:
            yield lambda place, content, label: file.write(content.numpy().data)
        return
    from imgcls.data.streaming import shard_writer

    cache = shard_writer(folder / split)

    def add(place: int, content: Tensor, label: int) -> None:
        cache[place] = {"image": content.numpy().tobytes(), "label": label}

    yield add
    cache.done()
    cache.merge()


def summary(table: np.ndarray, spec: DataSpec) -> dict[str, Any]:
    """Returns what the manifest says of a split: how many images, also by class, and the shape they share."""
    counts = np.bincount(table["label"], minlength=spec.num_classes).tolist()
    shape = [int(side[0]) if (side == side[0]).all() else 0 for side in (table["height"], table["width"])]
    return {
        "images": len(table), "shape": [*shape, spec.channels], "classes": dict(zip(spec.class_names, counts, strict=True))
    }  # fmt: skip


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns size and checksum of all files below a folder, after all of it has reached the disk."""
    found = {}
    for path in sorted(folder.rglob("*")):
        synchronize(path)
        if path.is_file():
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": checksum}
    return found


def synchronize(path: Path) -> None:
    """Waits until a file, or the entries of a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
