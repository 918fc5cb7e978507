"""Writes what data/packed.py and data/streaming.py read: the images of each split, a table, a manifest."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from torchcodec.encoders import JpegEncoder
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from imgcls.data.imagefolder import FolderImages, ImageFolder
from imgcls.data.loading.decode import UnreadableImage, is_jpeg
from imgcls.data.loading.manifest import VERSION, Manifest, SplitFacts, facts_of
from imgcls.data.loading.splits import SPLITS, check_targets
from imgcls.data.packed import RECORD
from imgcls.errors import UserError
from imgcls.spec import DataSpec

log = logging.getLogger(__name__)


class Encoder:
    """Images as they are stored: `(bytes (n,) uint8, height, width)`, or what is wrong with one. Runs in workers."""

    def __init__(self, dataset: FolderImages, settings: Any) -> None:
        self.dataset, self.settings = dataset, settings
        self.interpolation = InterpolationMode(dataset.spec.interpolation)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | str:
        try:
            image = self.dataset.read(index)
        except UnreadableImage as error:
            return str(error)
        smaller = self.settings.size is not None and min(image.shape[1:]) > self.settings.size
        if smaller:
            image = F.resize(image, [self.settings.size], self.interpolation, antialias=True)
        stored = image.permute(1, 2, 0).contiguous().view(-1)
        if self.settings.format != "pixels":
            file = np.fromfile(self.dataset.name(index), np.uint8)
            # What is a JPEG already and needs no resizing stays as it is, and loses nothing.
            keep = is_jpeg(file) and not smaller
            stored = torch.from_numpy(file)
            if not keep:
                stored = JpegEncoder(image.contiguous()).to_tensor(quality=self.settings.quality)
        return stored, image.shape[1], image.shape[2]


def write_pack(data: ImageFolder, folder: Path, settings: Any) -> Manifest:
    """Writes the splits of a folder set into an empty folder, the manifest last; returns the manifest.

    Only splits that the set has of its own are written: who reads them cuts the others from train. A stream
    can't be cut, so its splits are cut here.

    Raises:
        UserError: an unreadable image that is not to be skipped, a class without an image, a disk too small.
    """
    if settings.format == "litdata":
        data.setup()
    sets = data.sets or {split: found for split in SPLITS if (found := data.load(split)) is not None}
    encoders = {split: Encoder(dataset, settings) for split, dataset in sets.items()}  # type: ignore[arg-type]
    for split, encoder in encoders.items():
        check_targets(encoder.dataset.targets, data.spec.class_names, split)
    check_disk(folder, encoders.values())
    workers = data.default_workers() if data.num_workers is None else data.num_workers
    splits, skipped, largest = {}, list[str](), 0
    for split, encoder in encoders.items():
        table, bad = write_split(encoder, folder, split, data.root, workers)
        skipped += bad
        check_targets(
            torch.from_numpy(table["label"].copy()), data.spec.class_names, split
        )  # after what was skipped
        largest = max(largest, int(np.minimum(table["height"], table["width"]).max()))
        counts = np.bincount(table["label"], minlength=data.spec.num_classes).tolist()
        shape = [int(side[0]) if (side == side[0]).all() else 0 for side in (table["height"], table["width"])]
        classes = dict(zip(data.spec.class_names, counts, strict=True))
        splits[split] = SplitFacts(len(table), [*shape, data.spec.channels], classes)
        log.info("%s: %s images", split, f"{len(table):,}")
    if skipped:
        log.warning("%s unreadable images were skipped; manifest.json lists them", f"{len(skipped):,}")
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    manifest = Manifest(
        version=VERSION, format=settings.format, size=settings.size, quality=settings.quality,
        spec=at_most(data.spec, largest), val_fraction=data.val_fraction, test_fraction=data.test_fraction, splits=splits, skipped=skipped,
        files={name: facts_of(path) for name, path in files.items()},
    )  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    os.sync()  # all of it has reached the disk before it gets its name
    return manifest


def at_most(spec: DataSpec, largest: int) -> DataSpec:
    """Returns the spec with an image size that is no more than the `largest` short side that is stored, in pixels."""
    if largest >= spec.image_size:
        return spec
    words = "training on it is at %d pixels, as no image has more; data.image_size=%d would enlarge them"
    log.info(words, largest, spec.image_size)
    return replace(spec, image_size=largest)


def check_disk(folder: Path, encoders: Iterable[Encoder]) -> None:
    """Raises UserError where the disk is too small for what a few images of each split say of all."""
    needed = 0.0
    for encoder in encoders:
        some = [encoder[i] for i in np.linspace(0, len(encoder) - 1, 8, dtype=int).tolist()]
        needed += len(encoder) * float(
            np.mean([len(image[0]) for image in some if not isinstance(image, str)] or [0])
        )
    if needed > (free := shutil.disk_usage(folder).free):
        text = f"has {free / 1e9:.1f} GB free; about {needed / 1e9:.1f} GB are needed: free some"
        raise UserError(f"{folder.parent} {text}")


def write_split(
    encoder: Encoder, folder: Path, split: str, root: Path, workers: int
) -> tuple[np.ndarray, list[str]]:
    """Writes a split and its table; returns the table and what was skipped.

    A stream is read a shard after another, so its training images are written in an order drawn once.
    """
    order, stream = np.arange(len(encoder)), encoder.settings.format == "litdata"
    if stream and split == "train":
        order = np.random.default_rng(0).permutation(order)
    rows, skipped, offset = list[tuple[Any, ...]](), list[str](), 0
    loader: Iterable[Any] = DataLoader(encoder, sampler=order.tolist(), batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    loader = track(loader, split, total=len(order), transient=True, disable=not Console().is_terminal)
    with writer(folder, split, stream) as write:
        for index, stored in zip(order.tolist(), loader, strict=True):
            if isinstance(stored, str):
                if encoder.settings.on_error == "refuse":
                    raise UserError(f"{stored}; mend or delete it, or set on_error=skip")
                skipped.append(stored)
                continue
            content, height, width = stored
            label, name = (
                int(encoder.dataset.targets[index]),
                os.path.relpath(encoder.dataset.name(index), root),
            )
            write(len(rows), content, label)
            rows.append((offset, len(content), height, width, label, os.fsencode(name)))
            offset += len(content)
    table = np.array(rows, [*RECORD, ("name", f"S{max((len(row[-1]) for row in rows), default=1)}")])
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
