"""What `imgcls inspect` finds in a set: each image is read once, in worker processes, and then compared by numbers.

Two pictures are duplicates where all their pixels are the same, also in files of different formats. They are near
duplicates where at most so many of the 63 bits of their perceptual hashes differ (pHash: signs of the lowest
frequencies around their median; Zauner 2010) and thumbnails of 8×8 pixels agree as well. That finds copies which were
encoded anew or resized, not mirrored or turned ones; among pictures that all look alike it finds look-alikes too.
"""

import hashlib
import itertools
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from imgcls.data.base import ImageDataset
from imgcls.data.decode import UnreadableImage, decode
from imgcls.data.imagefolder import exclude_list, no_such_entry
from imgcls.data.index import list_images
from imgcls.errors import UserError

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of odd metadata; they name no file

BATCH = 16  # images that a worker hands over at once
SIDE, LOW, THUMB = 32, 8, 8  # of what is transformed, of the frequencies that are kept, of the thumbnail
BANDS = 7  # of 9 bits: two hashes with at most 6 different bits agree in one of them
ALIKE = 0.985  # least correlation of two thumbnails
_column, _row = torch.arange(SIDE) + 0.5, torch.arange(LOW)
COSINES = torch.cos(math.pi / SIDE * _row[:, None] * _column)  # the discrete cosine transform's lowest rows


class Seen(NamedTuple):
    """What one file holds; of an unreadable one there is the reason alone."""

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


class Reader(Dataset[Seen]):
    """Looks at the images of a table, or of a set in memory."""

    def __init__(self, paths: list[str], channels: int, memory: list[tuple[ImageDataset, int]] | None = None) -> None:
        self.paths, self.channels, self.memory = paths, channels, memory

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Seen:
        return look(self.paths[index], self.channels) if self.memory is None else measure(self.picture(index))

    def picture(self, index: int) -> Tensor:
        """Returns the whole image `(C, H, W) uint8`."""
        if self.memory is None:
            return decode(self.paths[index], self.channels)
        dataset, place = self.memory[index]
        return dataset.picture(place)


def look(path: str, channels: int) -> Seen:
    """Reads a file as training does."""
    try:
        if not Path(path).stat().st_size:
            return Seen("empty file")
        with Image.open(path) as opened:
            kind = opened.format or "", opened.mode
        return measure(decode(path, channels), *kind)
    except PermissionError:
        return Seen("no permission to read it")
    except UnidentifiedImageError:
        return Seen("text, no image" if is_text(path) else "no image format that is known")
    except UnreadableImage as error:
        return Seen(str(error).removeprefix(f"{path} can't be read as an image (").removesuffix(")"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Seen((getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0])


def is_text(path: str) -> bool:
    with Path(path).open("rb") as file:
        start = file.read(512)
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in start)


def measure(image: Tensor, kind: str = "", mode: str = "") -> Seen:
    """Returns the numbers of an image `(C, H, W) uint8`."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # as decoders leave them: nothing is copied
    height, width, _ = pixels.shape
    counts = np.stack([np.bincount(c, minlength=256) for c in pixels.reshape(-1, len(image)).T]) / (height * width)
    levels = np.arange(256) / 255
    small = F.resize(image, [SIDE, SIDE], antialias=True)
    low = (COSINES @ small.float().mean(0) @ COSINES.T).flatten()[1:]  # without the mean brightness
    bits = np.packbits((low > low.median()).numpy())
    digest = hashlib.sha1(f"{height}×{width}".encode(), usedforsecurity=False)
    digest.update(pixels.reshape(-1).data)
    return Seen(
        None, kind, mode, width, height, tuple((counts @ levels).tolist()), tuple((counts @ levels**2).tolist()),
        digest.digest(), int.from_bytes(bits.tobytes(), "big"),
        F.resize(small, [THUMB, THUMB], antialias=True).numpy().tobytes(),
    )  # fmt: skip


def scan(table: pd.DataFrame, reader: Reader, workers: int) -> pd.DataFrame:
    """Returns the table (a row an image) with the columns of `Seen`."""
    loader: Iterable[list[Seen]] = DataLoader(reader, BATCH, num_workers=workers, collate_fn=list)  # type: ignore[arg-type]
    columns = TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console, rows = Console(stderr=True), list[Seen]()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(reader))
        for batch in loader:
            rows += batch
            progress.advance(task, len(batch))
    return table.join(pd.DataFrame(rows, columns=list(Seen._fields), index=table.index))


def list_files(
    root: Path, folders: dict[str, Path], exclude: str | None
) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, str]]]:
    """Returns a table of all image files of a folder set (file, relative to the root; split; label), that of the
    class folders (split, label), and the folders that can't be read.

    Raises:
        UserError: there is no image at all, or an excluded file is none of them.
    """
    rows, classes, errors = list[tuple[str, str, str]](), list[tuple[str, str]](), list[OSError]()
    for split, folder in folders.items():
        try:
            labels = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
        except OSError as error:
            errors.append(error)
            continue
        for label in labels:
            found, _ = list_images(folder, label, errors)
            classes.append((split, label))
            rows += [(os.path.relpath(folder / file, root), split, label) for file in found]
    if not rows:
        raise UserError(f"{root} holds no image; expected <class>/<image files> or {{train,val,test}}/<class>/… in it")
    table = pd.DataFrame(rows, columns=["file", "split", "label"])
    excluded = exclude_list(exclude)
    if unknown := sorted(set(excluded) - set(table["file"])):
        raise no_such_entry(exclude, unknown[0], root)
    unread = [{"folder": os.path.relpath(e.filename, root), "reason": e.strerror or str(e)} for e in errors]
    kept = table[~table["file"].isin(excluded)].reset_index(drop=True)
    return kept, pd.DataFrame(classes, columns=["split", "label"]), unread


def list_memory(data: Any) -> tuple[pd.DataFrame, pd.DataFrame, Reader]:
    """Returns the tables of a set in memory, with the splits that it has of its own, and what reads it."""
    loaded = {split: found for split in ("train", "val", "test") if (found := data.load(split)) is not None}
    images = [(dataset, i) for dataset in loaded.values() for i in range(len(dataset))]
    names = data.spec.class_names
    rows = [
        (f"{split}/{i}", split, names[label])
        for split, dataset in loaded.items()
        for i, label in enumerate(dataset.targets.tolist())
    ]
    table = pd.DataFrame(rows, columns=["file", "split", "label"])
    classes = pd.DataFrame(itertools.product(loaded, names), columns=["split", "label"])
    return table, classes, Reader(table["file"].tolist(), data.spec.channels, images)


def duplicates(table: pd.DataFrame) -> list[list[int]]:
    """Returns the rows of each picture that is there more than once."""
    copies = table[table["reason"].isna() & table.duplicated("digest", keep=False)]
    return [sorted(group) for group in copies.groupby("digest", sort=False).groups.values() if len(group) > 1]


def near_duplicates(table: pd.DataFrame, distance: int) -> list[list[int]]:
    """Returns groups of rows whose pictures are near duplicates, in a chain at least; a picture that is there more
    than once is in them once."""
    rows = table[table["reason"].isna()].drop_duplicates("digest", keep="last")  # test comes last
    if not len(rows):
        return []
    hashes = rows["hash"].to_numpy(np.uint64)
    thumbs = np.frombuffer(b"".join(rows["thumb"]), np.uint8).reshape(len(rows), -1)
    pairs = near_pairs(hashes, distance)
    pairs = pairs[alike(thumbs, pairs)]
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(rows), len(rows)))
    _, group = connected_components(graph, directed=False)
    members = pd.Series(rows.index, index=group)[np.bincount(group)[group] > 1]
    return [sorted(found) for _, found in members.groupby(level=0)]


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Returns the pairs `(P, 2)` of places in `hashes (N,) uint64` that differ in at most `distance` < BANDS bits.

    Such two agree in all bits of one band at least, so only those that do are compared (Norouzi et al. 2012).
    """
    assert distance < BANDS
    found, width = [np.zeros((0, 2), np.int64)], 63 // BANDS
    for band in range(BANDS):
        key = (hashes >> np.uint64(1 + band * width)) & np.uint64(2**width - 1)
        order = np.argsort(key, kind="stable")
        key, sorted_hashes = key[order], hashes[order]
        here = np.arange(len(order))
        for offset in itertools.count(1):  # each with the one so many places further, as long as any is in its band
            here = here[here + offset < len(order)]
            here = here[key[here] == key[here + offset]]
            if not len(here):
                break
            differing = np.bitwise_count(sorted_hashes[here] ^ sorted_hashes[here + offset])
            close = here[differing <= distance]
            found.append(np.sort(np.stack([order[close], order[close + offset]], 1), 1))
    return np.unique(np.concatenate(found), axis=0)


def alike(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns for each of the pairs `(P, 2)` whether the two of `thumbs (N, D) uint8` correlate."""
    out = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 65536):
        one, other = (thumbs[column].astype(np.float32) for column in pairs[start : start + 65536].T)
        difference = np.sqrt(((one - other) ** 2).mean(1))
        spread = np.minimum(one.std(1), other.std(1))
        out[start : start + 65536] = difference <= np.maximum(spread * np.sqrt(2 * (1 - ALIKE)), 1.0)
    return out
