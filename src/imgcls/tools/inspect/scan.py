"""What `imgcls inspect` finds in a set: each image is read once, in worker processes, and then compared by numbers.

Two pictures are duplicates where all their pixels are the same, also in files of different formats. They are near
duplicates where at most so many of the 63 bits of their perceptual hashes differ (pHash: signs of the lowest
frequencies around their median; Zauner 2010) and thumbnails of 8×8 pixels agree as well. That finds copies which were
encoded anew or resized, not mirrored or turned ones; among pictures that all look alike it finds look-alikes too.
"""

import hashlib
import itertools
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from imgcls.data.batch import ImageDataset
from imgcls.data.loading.decode import MAX_PIXELS, UnreadableImage, decode, header
from imgcls.data.loading.listing import list_images
from imgcls.errors import UserError

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of odd metadata; they name no file

BATCH = 16  # images that a worker hands over at once
SIDE, LOW, THUMB = 32, 8, 8  # of what is transformed, of the frequencies that are kept, of the thumbnail
BANDS = 7  # of 9 bits: two hashes with at most 6 different bits agree in one of them
CROWD = 32  # pictures of one hash, of which each is compared with each
ALIKE = 0.985  # least correlation of two thumbnails


class Seen(NamedTuple):
    """What one image holds; of an unreadable one there is the reason, and of its numbers what can be said."""

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
    numbers: str = ""  # as in `Header`
    white: float = 0.0
    peak: float = 0.0


class Reader(Dataset[Seen]):
    """Looks at image files, or at a set in memory."""

    max_pixels = MAX_PIXELS
    bits: int | None = None  # as in `decode`

    def __init__(
        self, paths: list[str], channels: int, memory: list[tuple[ImageDataset, int]] | None = None
    ) -> None:
        self.paths, self.channels, self.memory = paths, channels, memory

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Seen:
        if self.memory is None:
            return look(self.paths[index], self.channels, self.max_pixels, self.bits)
        return measure(self.picture(index))

    def picture(self, index: int) -> Tensor:
        """Returns the whole image `(C, H, W) uint8`."""
        if self.memory is None:
            return decode(self.paths[index], self.channels, self.max_pixels, self.bits)
        dataset, place = self.memory[index]
        return dataset.picture(place)


def look(path: str, channels: int, max_pixels: int = MAX_PIXELS, bits: int | None = None) -> Seen:
    """Reads a file as training does."""
    found = header(path, max_pixels)
    try:
        seen = measure(decode(path, channels, max_pixels, bits), found.format, found.mode)
    except UnreadableImage as error:
        seen = Seen(error.reason())
    return seen._replace(numbers=found.numbers, white=found.white, peak=found.peak)


def measure(image: Tensor, kind: str = "", mode: str = "") -> Seen:
    """Returns the numbers of an image `(C, H, W) uint8`."""
    pixels = image.permute(1, 2, 0).contiguous()  # as decoders leave them: nothing is copied
    values = pixels.flatten(0, 1).float() / 255
    small = F.resize(image, [SIDE, SIDE], antialias=True)
    low = dctn(small.float().mean(0).numpy())[:LOW, :LOW].flatten()[1:]  # without the mean brightness
    return Seen(
        None, kind, mode, image.shape[2], image.shape[1],
        tuple(values.mean(0).tolist()), tuple(values.square().mean(0).tolist()),
        hashlib.sha1(repr(image.shape).encode() + pixels.numpy().tobytes(), usedforsecurity=False).digest(),
        int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big"),
        F.resize(small, [THUMB, THUMB], antialias=True).numpy().tobytes(),
    )  # fmt: skip


def scan(table: pd.DataFrame, reader: Reader, workers: int) -> pd.DataFrame:
    """Returns the table (a row an image) with the columns of `Seen`."""
    loader: DataLoader[Any] = DataLoader(reader, BATCH, num_workers=workers, collate_fn=list)
    console, seen = Console(stderr=True), (seen for batch in loader for seen in batch)
    rows = track(
        seen, "reading", len(reader), console=console, transient=True, disable=not console.is_terminal
    )
    return table.join(pd.DataFrame(rows, columns=list(Seen._fields), index=table.index))


def list_files(
    root: Path, folders: dict[str, Path], excluded: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, str]]]:
    """Returns a table of all image files of a folder set (file, relative to the root; split; label), that of the
    class folders (split, label), and the folders that can't be read.

    Raises:
        UserError: there is no image at all, or an excluded file is none of them.
    """
    rows, classes, errors = list[tuple[str, str, str]](), list[tuple[str, str]](), list[OSError]()
    for split, folder in folders.items():
        _, labels, _ = next(os.walk(folder, onerror=errors.append), ("", [], []))
        for label in sorted(label for label in labels if not label.startswith(".")):
            classes.append((split, label))
            found, _ = list_images(folder, label, errors)
            rows += [(os.path.relpath(folder / file, root), split, label) for file in found]
    if not rows:
        raise UserError(
            f"{root} holds no image; expected <class>/<image files> or {{train,val,test}}/<class>/… in it"
        )
    table = pd.DataFrame(rows, columns=["file", "split", "label"])
    if unknown := sorted(set(excluded) - set(table["file"])):
        raise UserError(
            f"data.exclude names {unknown[0]!r}, which is no image of {root}; take the line out of it"
        )
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


def duplicates(good: pd.DataFrame) -> list[list[int]]:
    """Returns the rows of each picture that is there more than once."""
    copies = good[good.duplicated("digest", keep=False)]
    return [sorted(rows) for rows in copies.groupby("digest", sort=False).groups.values()]


def near_duplicates(good: pd.DataFrame, distance: int) -> list[list[int]]:
    """Returns groups of rows whose pictures are near duplicates, in a chain at least; a picture that is there more
    than once is in them once."""
    rows = good.drop_duplicates("digest", keep="last")  # test comes last
    if not len(rows):
        return []
    thumbs = np.frombuffer(b"".join(rows["thumb"]), np.uint8).reshape(len(rows), -1)
    pairs = to_compare(rows["hash"].to_numpy(np.uint64), thumbs.mean(1), distance)
    pairs = pairs[alike(thumbs, pairs)]
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(rows), len(rows)))
    group = pd.Series(connected_components(graph, directed=False)[1], index=rows.index)
    group = group[group.duplicated(keep=False)]
    return [sorted(members) for members in group.groupby(group).groups.values()]


def to_compare(hashes: np.ndarray, brightness: np.ndarray, distance: int) -> np.ndarray:
    """Returns the pairs `(P, 2)` of places in `hashes (N,) uint64` that differ in at most `distance` bits.

    Where more than CROWD pictures have one hash, as blank ones do, each is compared with the CROWD that follow it in
    brightness, and CROWD of them stand for all against other hashes: the work does not grow with N squared.
    """
    order = np.lexsort((brightness, hashes))
    ordered = hashes[order]
    _, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    place = np.arange(len(order)) - first.repeat(counts)
    chosen = order[place % (-(-counts // CROWD)).repeat(counts) == 0]
    found = [chosen[near_pairs(hashes[chosen], distance)]]
    for offset in range(1, CROWD + 1):
        here = np.flatnonzero(ordered[:-offset] == ordered[offset:])
        found.append(np.stack([order[here], order[here + offset]], 1))
    return np.concatenate(found)


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Returns the pairs `(P, 2)` of places in `hashes (N,) uint64` that differ in at most `distance` < BANDS bits.

    Such two agree in all bits of one band at least, so only those that do are compared (Norouzi et al. 2012).
    """
    found, width = [np.zeros((0, 2), np.int64)], 63 // BANDS
    for band in range(BANDS):
        key = hashes >> np.uint64(1 + band * width) & np.uint64(2**width - 1)
        order = np.argsort(key, kind="stable")
        key, sorted_hashes, here = key[order], hashes[order], np.arange(len(order))
        for offset in itertools.count(
            1
        ):  # each with the one so many places further, as long as any is in its band
            here = here[here + offset < len(order)]
            here = here[key[here] == key[here + offset]]
            if not len(here):
                break
            close = here[np.bitwise_count(sorted_hashes[here] ^ sorted_hashes[here + offset]) <= distance]
            found.append(np.stack([order[close], order[close + offset]], 1))
    return np.unique(np.sort(np.concatenate(found), 1), axis=0)


def alike(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns for each of the pairs `(P, 2)` whether the two of `thumbs (N, D) uint8` correlate."""
    out = []
    for part in np.array_split(pairs, len(pairs) // 65536 + 1):
        one, other = (thumbs[column].astype(np.float32) for column in part.T)
        spread = np.minimum(one.std(1), other.std(1)) * np.sqrt(2 * (1 - ALIKE))
        out.append(np.sqrt(((one - other) ** 2).mean(1)) <= np.maximum(spread, 1.0))
    return np.concatenate(out)
