"""Pack writer: writes the images, tables and manifest that data/packed.py and data/streaming.py read."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
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


class Form(NamedTuple):
    """How images are stored; the values are those of conf/pack.yaml."""

    format: str
    size: int | None  # of the short side, at most, in pixels
    quality: int  # of JPEG


class Encoder(Dataset[tuple[Tensor, int, int] | str]):
    """Images as they are stored, `(bytes (n,) uint8, height, width)`, or what is wrong with an image."""

    def __init__(self, dataset: FolderImages, form: Form) -> None:
        self.dataset, self.form = dataset, form
        self.interpolation = InterpolationMode(dataset.spec.interpolation)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | str:
        try:
            image = self.dataset.read(index)
        except UnreadableImage as error:
            return str(error)
        size, path = self.form.size, self.dataset.name(index)
        if size is not None and min(image.shape[1:]) > size:
            image, path = F.resize(image, [size], self.interpolation, antialias=True), ""
        return self.stored(image, path), image.shape[1], image.shape[2]

    def stored(self, image: Tensor, path: str) -> Tensor:
        """Returns the bytes of an image `(C, H, W) uint8`; `path` is its file, "" where it was resized."""
        if self.form.format == "pixels":
            return image.permute(1, 2, 0).contiguous().view(-1)
        if path and is_jpeg(file := np.fromfile(path, np.uint8)):
            return torch.from_numpy(file)  # a JPEG stays as it is, and loses nothing
        return JpegEncoder(image.contiguous()).to_tensor(quality=self.form.quality)


def write_pack(data: ImageFolder, folder: Path, form: Form, skip: bool) -> Manifest:
    """Writes the splits of a folder set into an empty folder, the manifest last; returns the manifest.

    Only splits that the set has of its own are written: who reads them cuts the others from train. A stream
    can't be cut, so its splits are cut here.

    Raises:
        UserError: an unreadable image and not `skip`, a class without an image, a disk too small.
    """
    if form.format == "litdata":
        data.setup()
    sets = data.sets or {split: found for split in SPLITS if (found := data.load(split)) is not None}
    encoders = {}
    for split, dataset in sets.items():
        assert isinstance(dataset, FolderImages)
        check_targets(dataset.targets, data.spec.class_names, split)
        encoders[split] = Encoder(dataset, form)
    check_disk(folder, encoders.values())
    splits, skipped, largest = {}, list[str](), 0
    for split, encoder in encoders.items():
        table, bad = write_split(encoder, folder, split, data, skip)
        splits[split] = describe(table, data.spec, split)
        skipped, largest = skipped + bad, max(largest, np.minimum(table["height"], table["width"]).max())
        log.info("%s: %s images", split, f"{len(table):,}")
    if skipped:
        log.warning("%s unreadable images were skipped; manifest.json lists them", f"{len(skipped):,}")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): facts_of(path) for path in paths}
    cuts, spec = (data.val_fraction, data.test_fraction), at_most(data.spec, int(largest))
    manifest = Manifest(VERSION, *form, spec, *cuts, splits, skipped, files)
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    os.sync()  # all of it has reached the disk before it gets its name
    return manifest


def check_disk(folder: Path, encoders: Iterable[Encoder]) -> None:
    """Raises UserError where the disk is too small, by the sizes of a few images of each split."""
    needed = 0.0
    for encoder in encoders:
        some = [encoder[i] for i in np.linspace(0, len(encoder) - 1, 8, dtype=int).tolist()]
        sizes = [len(image[0]) for image in some if not isinstance(image, str)]
        needed += len(encoder) * float(np.mean(sizes or [0]))
    if needed > (free := shutil.disk_usage(folder).free):
        text = f"has {free / 1e9:.1f} GB free; about {needed / 1e9:.1f} GB are needed: free some"
        raise UserError(f"{folder.parent} {text}")


def write_split(
    encoder: Encoder, folder: Path, split: str, data: ImageFolder, skip: bool
) -> tuple[np.ndarray, list[str]]:
    """Writes a split and its table; returns the table and what was skipped.

    A stream is read a shard after another, so its training images are written in an order drawn once.
    """
    order, stream = np.arange(len(encoder)), encoder.form.format == "litdata"
    if stream and split == "train":
        order = np.random.default_rng(0).permutation(order)
    workers = data.default_workers() if data.num_workers is None else data.num_workers
    loader = DataLoader(encoder, sampler=order.tolist(), batch_size=None, num_workers=workers)
    images = track(loader, split, total=len(order), transient=True, disable=not Console().is_terminal)
    rows, skipped, offset = list[tuple[int, int, int, int, int, bytes]](), list[str](), 0
    with writer(folder, split, stream) as write:
        for index, stored in zip(order.tolist(), images, strict=True):
            if isinstance(stored, str):
                if not skip:
                    raise UserError(f"{stored}; mend or delete it, or set on_error=skip")
                skipped.append(stored)
                continue
            content, height, width = stored
            label = int(encoder.dataset.targets[index])
            name = os.fsencode(os.path.relpath(encoder.dataset.name(index), data.root))
            write(len(rows), content, label)
            rows.append((offset, len(content), height, width, label, name))
            offset += len(content)
    longest = max((len(row[-1]) for row in rows), default=1)
    table = np.array(rows, [*RECORD, ("name", f"S{longest}")])
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


def describe(table: np.ndarray, spec: DataSpec, split: str) -> SplitFacts:
    """Returns what a manifest says of a split. Raises UserError where all images of a class were skipped."""
    check_targets(torch.from_numpy(table["label"].copy()), spec.class_names, split)
    shape = [int(side[0]) if (side == side[0]).all() else 0 for side in (table["height"], table["width"])]
    counts = np.bincount(table["label"], minlength=spec.num_classes).tolist()
    return SplitFacts(len(table), [*shape, spec.channels], dict(zip(spec.class_names, counts, strict=True)))


def at_most(spec: DataSpec, largest: int) -> DataSpec:
    """Returns the spec with an image size that is at most the `largest` short side in the pack, in pixels."""
    if largest >= spec.image_size:
        return spec
    words = "training on it is at %d pixels, as no image has more; data.image_size=%d would enlarge them"
    log.info(words, largest, spec.image_size)
    return replace(spec, image_size=largest)
