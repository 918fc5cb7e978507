"""Copies in a set: finds pictures that are there more than once, also those encoded anew or resized.

Two pictures are duplicates where all their pixels are the same, also in files of different formats. They are
near duplicates where at most so many of the 63 bits of their perceptual hashes differ (pHash: signs of the
lowest frequencies around their median; Zauner 2010) and thumbnails of 8×8 pixels agree as well. Mirrored and
turned copies are not found; among pictures that all look alike, look-alikes are found too.
"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imgcls.tools.inspect.scan import SPLITS

BANDS = 7  # of 9 bits: two hashes with at most 6 different bits agree in one of them
CROWD = 32  # pictures of one hash, of which each is compared with each
ALIKE = 0.985  # least correlation of two thumbnails


def duplicates(good: pd.DataFrame) -> list[list[int]]:
    """Returns the rows of each picture that is there more than once."""
    copies = good[good.duplicated("digest", keep=False)]
    return [sorted(rows) for rows in copies.groupby("digest", sort=False).groups.values()]


def near_duplicates(good: pd.DataFrame, distance: int) -> list[list[int]]:
    """Returns groups of rows; in a group each picture is a near duplicate of another one.

    Of the same picture in several files one is taken.
    """
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

    Where more than CROWD pictures have one hash, as blank ones do, each is compared with the CROWD that
    follow it in brightness, and CROWD of them stand for all against other hashes: the work does not grow with
    N squared.
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
    """Returns the pairs `(P, 2)` of places in `hashes (N,) uint64` that differ in at most `distance` bits.

    `distance` is less than BANDS, so that two such hashes agree in all bits of one band at least: only
    those that do are compared (Norouzi et al. 2012).
    """
    found, width = [np.zeros((0, 2), np.int64)], 63 // BANDS
    for band in range(BANDS):
        key = hashes >> np.uint64(1 + band * width) & np.uint64(2**width - 1)
        order = np.argsort(key, kind="stable")
        key, sorted_hashes, here = key[order], hashes[order], np.arange(len(order))
        # Each is compared with the one so many places further, as long as any is in its band.
        for offset in itertools.count(1):
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


def described(table: pd.DataFrame, groups: list[list[int]]) -> list[dict[str, Any]]:
    """Returns the groups, in each the copy that stays first; leaks come first, then those with two labels."""
    out = list[dict[str, Any]]()
    for group in groups:
        images = table.loc[group, ["file", "split", "label"]].to_dict("records")
        images.sort(key=lambda image: (-SPLITS.index(image["split"]), image["file"]))
        leak, two_labels = (len({image[key] for image in images}) > 1 for key in ("split", "label"))
        out.append({"leak": leak, "two_labels": two_labels, "images": images})
    out.sort(key=lambda group: (not group["leak"], not group["two_labels"], group["images"][0]["file"]))
    return out
