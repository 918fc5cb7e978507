"""imgcls pack: writes a set of images into a few files, in a form that is fast to train from. The images,
tables and manifest are those that data/packed.py and data/streaming.py read."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import Field
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchcodec.encoders import JpegEncoder
from torchvision.transforms.v2 import InterpolationMode, functional

from imgcls.commands.outputs import writing
from imgcls.config import check as configs
from imgcls.config.build import build
from imgcls.config.paths import hydra_quoted, shown
from imgcls.config.training import Node
from imgcls.data.imagefolder import FolderImages, ImageFolder
from imgcls.data.loading.decode import is_jpeg
from imgcls.data.loading.manifest import READERS, VERSION, Manifest, SplitFacts, facts_of, record_of
from imgcls.data.loading.splits import SPLITS, check_targets, class_counts
from imgcls.data.module import ImageDataModule
from imgcls.data.rows import RowsModule
from imgcls.engine.build import prepare
from imgcls.errors import UnreadableImage, UserError
from imgcls.spec import DataSpec, as_word

log = logging.getLogger(__name__)

Source = ImageFolder | RowsModule


@dataclass(frozen=True)
class PackConfig:
    """Keys of conf/pack.yaml."""

    data: Node
    out: str
    format: Literal["pixels", "jpeg", "litdata"]
    size: Annotated[int, Field(ge=1)] | None  # of the short side, at most, in pixels
    quality: Annotated[int, Field(ge=1, le=100)]  # of JPEG
    on_error: Literal["refuse", "skip"]


def main(config: PackConfig, run_dir: Path) -> None:
    """Packs a set into the directory `out`, which is there only when all of it is."""
    out = Path(config.out).expanduser()
    if out.exists() or out.is_symlink():
        raise UserError(f"out={out} is there already; give another directory, or delete it")
    configs.check({"data": config.data})
    prepare(0)
    data = build(config.data, "data", ImageDataModule)
    if not isinstance(data, ImageFolder | RowsModule):
        target = config.data["_target_"]
        raise UserError(f"{target} has no image files to pack; expected data=imagefolder or its like")
    if data.fraction < 1:
        given = f"data.fraction={data.fraction}"
        raise UserError(f"{given}: all images are packed; give the fraction when training")
    if isinstance(data, ImageFolder) and out.resolve().is_relative_to(data.root.resolve()):
        where = f"data.root={data.root}, where it would be a class"
        raise UserError(f"out={out} lies in {where}; give another directory")
    data.prepare_data()
    pack(data, out, config)


def pack(data: Source, out: Path, config: PackConfig) -> None:
    """Packs the images, and says how many there are and how to train on them."""
    start = time.perf_counter()
    with whole(out) as partial:
        manifest = write_pack(data, partial, config)
    images = sum(split.images for split in manifest.splits.values())
    size, speed = sum(file.bytes for file in manifest.files.values()), images / (time.perf_counter() - start)
    choice = READERS[config.format]
    log.info("%s images, %.1f MB, %.0f images/s: %s", f"{images:,}", size / 1e6, speed, shown(out))
    log.info("train on it: imgcls train data=%s data.root=%s", choice, hydra_quoted(shown(out)))


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yields a hidden directory, which takes the name `out` at the end; after an error nothing stays. Raises
    UserError where another process writes to it, or the disk does not take it."""
    partial = out.with_name(f".{out.name}.partial")
    with writing(out), ExitStack() as at_end:
        try:
            at_end.enter_context(FileLock(f"{partial}.lock", timeout=0))
        except Timeout as error:
            reason = "is being packed by another process; wait for it"
            raise UserError(f"out={out} {reason} or give another") from error
        at_end.callback(Path(f"{partial}.lock").unlink, missing_ok=True)
        at_end.callback(shutil.rmtree, partial, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        yield partial
        partial.rename(out)


class Encoder(Dataset[tuple[Tensor, int, int] | str]):
    """Images as they are stored, `(bytes (n,) uint8, height, width)`, or what is wrong with an image."""

    def __init__(self, dataset: FolderImages, form: PackConfig) -> None:
        self.dataset, self.form = dataset, form
        self.interpolation = InterpolationMode(dataset.spec.interpolation)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | str:
        try:
            image = self.dataset.read(index)
        except UnreadableImage as error:
            return str(error)
        size = self.form.size
        if resized := size is not None and min(image.shape[1:]) > size:
            image = functional.resize(image, [size], self.interpolation, antialias=True)
        if self.form.format == "pixels":
            stored = image.permute(1, 2, 0).contiguous().view(-1)
        elif not resized and is_jpeg(file := self.dataset.content(index)):
            stored = torch.from_numpy(file)  # a JPEG stays as it is, and loses nothing
        else:
            stored = JpegEncoder(image.contiguous()).to_tensor(quality=self.form.quality)
        return stored, image.shape[1], image.shape[2]


def write_pack(data: Source, folder: Path, form: PackConfig) -> Manifest:
    """Writes the splits of a set into an empty folder, the manifest last. Only splits that the set has of its
    own are written: who reads them cuts the others from train. A stream can't be cut, and groups are not
    kept, so here their splits are cut. Raises UserError for an unreadable image that is not to be skipped, a
    class without an image, and a disk too small."""
    data.setup()  # what training refuses is not packed
    sets = data.sets
    grouped = isinstance(data, RowsModule) and data.row_groups is not None
    if grouped:
        log.info("the splits are cut now, as a pack has no groups: data.folds would cut through them")
    elif form.format != "litdata":
        sets = {split: found for split in SPLITS if (found := data.load(split)) is not None}
    encoders = {}
    for split, dataset in sets.items():
        assert isinstance(dataset, FolderImages)
        check_targets(dataset.targets, data.spec.class_names, split)
        if dataset.targets.is_floating_point():
            raise UserError("the data has measures; imgcls pack expects classes or labels")
        if dataset.targets.ndim > 1 and form.format == "litdata":
            reason = "the data has several labels for an image, and shards have one class"
            raise UserError(f"format=litdata: {reason}; take format=jpeg or pixels")
        encoders[split] = Encoder(dataset, form)
    check_disk(folder, encoders.values())
    splits, skipped, largest = {}, list[str](), 0
    for split, encoder in encoders.items():
        table, bad = write_split(encoder, folder / split, data)
        splits[split] = describe(table, data.spec, split)
        skipped, largest = skipped + bad, max(largest, np.minimum(table["height"], table["width"]).max())
        log.info("%s: %s images", split, f"{len(table):,}")
    if skipped:
        log.warning("%s unreadable images were skipped; manifest.json lists them", f"{len(skipped):,}")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): facts_of(path) for path in paths}
    spec, cuts = data.spec, (data.val_fraction, data.test_fraction)
    if largest < min(spec.size):
        words = "training on it is at %s pixels, as no image has more; data.image_size=%s would enlarge them"
        smaller, given = spec.at_most(int(largest)), as_word(spec.image_size)
        log.info(words, as_word(smaller.image_size), given)
        spec = smaller
    manifest = Manifest(VERSION, form.format, form.size, form.quality, spec, *cuts, splits, skipped, files)
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


def write_split(encoder: Encoder, stem: Path, data: Source) -> tuple[np.ndarray, list[str]]:
    """Writes a split and its table; returns the table and what was skipped. A stream is read a shard after
    another, so its training images are written in an order drawn once."""
    order, stream = np.arange(len(encoder)), encoder.form.format == "litdata"
    if stream and stem.name == "train":
        order = np.random.default_rng(0).permutation(order)
    workers = data.default_workers() if data.num_workers is None else data.num_workers
    loader = DataLoader(encoder, sampler=order.tolist(), batch_size=None, num_workers=workers)
    images = track(loader, stem.name, total=len(order), transient=True, disable=not Console().is_terminal)
    rows, skipped, offset = list[tuple[int, int, int, int, Any, bytes]](), list[str](), 0
    with writer(stem, stream) as write:
        for index, stored in zip(order.tolist(), images, strict=True):
            if isinstance(stored, str):
                if encoder.form.on_error == "refuse":
                    raise UserError(f"{stored}; mend or delete it, or set on_error=skip")
                skipped.append(stored)
                continue
            content, height, width = stored
            label = encoder.dataset.targets[index].tolist()
            name = os.fsencode(data.name_of(encoder.dataset, index))
            write(len(rows), content, label)
            rows.append((offset, len(content), height, width, label, name))
            offset += len(content)
    longest = max((len(row[-1]) for row in rows), default=1)
    table = np.array(rows, [*record_of(encoder.dataset.targets), ("name", f"S{longest}")])
    np.save(stem.with_suffix(".npy"), table)
    return table, skipped


@contextmanager
def writer(stem: Path, stream: bool) -> Iterator[Callable[[int, Tensor, Any], object]]:
    """Yields a function of place, content and label that adds an image to a split."""
    if not stream:
        with stem.with_suffix(".bin").open("wb") as file:
            yield lambda place, content, label: file.write(content.numpy().data)
        return
    from imgcls.data.loading.shards import shard_writer

    cache = shard_writer(stem)

    def add(place: int, content: Tensor, label: int) -> None:
        cache[place] = {"image": content.numpy().tobytes(), "label": label}

    yield add
    cache.done()
    cache.merge()


def describe(table: np.ndarray, spec: DataSpec, split: str) -> SplitFacts:
    """Returns what a manifest says of a split. Raises UserError where all images of a class were skipped."""
    check_targets(torch.from_numpy(table["label"].copy()), spec.class_names, split)
    shape = [int(side[0]) if (side == side[0]).all() else 0 for side in (table["height"], table["width"])]
    counts = class_counts(torch.from_numpy(table["label"].astype(np.int64)), spec.num_classes).tolist()
    return SplitFacts(len(table), [*shape, spec.channels], dict(zip(spec.class_names, counts, strict=True)))
