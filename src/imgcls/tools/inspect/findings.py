"""Findings of `imgcls inspect`: the facts of inspect.json, copies of pictures among them, and exclude.txt.
Two pictures are duplicates where all their pixels are the same, also in files of different formats. They are
near duplicates where at most so many of the 63 bits of their perceptual hashes differ (pHash: signs of the
lowest frequencies around their median; Zauner 2010) and thumbnails of 8×8 pixels agree as well. Mirrored and
turned copies are not found; among pictures that all look alike, look-alikes are found too."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imgcls.data.loading.splits import SPLITS
from imgcls.tools.inspect.looks import odd_looks
from imgcls.tools.inspect.scan import COLUMNS, Listing

BANDS = 7  # of 9 bits: two hashes with at most 6 different bits agree in one of them
CROWD = 32  # pictures of one hash, of which each is compared with each
ALIKE = 0.985  # least correlation of two thumbnails


def findings(listing: Listing, table: pd.DataFrame, near: int | None, bits: int | None) -> dict[str, Any]:
    """Returns what inspect.json says of a scan; `near` (None: not looked for) is the distance of hashes of
    `near_duplicates`, and `bits` is as in `decode`."""
    good, bad = table[table["reason"].isna()], table[table["reason"].notna()]
    splits = [split for split in SPLITS if split in set(listing.classes["split"])]
    labels = sorted(set(listing.classes["label"]))
    each = each_label(good)
    counts = pd.crosstab(each["label"], each["split"]).reindex(index=labels, columns=splits, fill_value=0)
    classes, absent = counts.T.to_dict(), {}
    for label, row in classes.items():
        if not all(row.values()):
            absent[label] = {"in": [s for s in row if row[s]], "not_in": [s for s in row if not row[s]]}
    return {
        "images": len(good),
        "splits": good["split"].value_counts().reindex(splits, fill_value=0).to_dict(),
        "classes": classes,
        "absent": absent,
        "cut": [split for split in ("val", "test") if split not in splits],
        **sizes(good),
        **{f"{name}s": good[name].value_counts().to_dict() for name in ("format", "mode")},
        **statistics(good[good["split"] == "train"]),
        "unreadable": listing.unread + bad[["file", "reason", "numbers"]].to_dict("records"),
        "duplicates": described(table, repeated(good["digest"])),
        "near_duplicates": [] if near is None else described(table, near_duplicates(good, near)),
        "deep": depths(table, bits),
        "left_out": listing.left_out,
        "looks": odd_looks(good),
    }


def each_label(good: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each label that an image has; of images with one class these rows themselves."""
    return good.assign(label=good["labels"]).explode("label") if "labels" in good else good


def sizes(good: pd.DataFrame) -> dict[str, Any]:
    """Returns the most frequent sizes in pixels, and the minimum, median and maximum of width and height."""
    counts = good.value_counts(["width", "height"]).reset_index(name="images")
    frequent = {f"{row.width}×{row.height}": row.images for row in counts.head(10).itertuples()}
    sides = ("width", "height") if len(good) else ()
    ranges = {side: good[side].describe()[["min", "50%", "max"]].to_dict() for side in sides}
    return {"sizes": frequent, "different_sizes": len(counts), **ranges}


def statistics(train: pd.DataFrame) -> dict[str, Any]:
    """Returns mean and standard deviation of each channel over the pixels in [0, 1], each image counting
    alike, and the overrides that set them; and the largest class against the smallest."""
    if not len(train):
        return {"mean": None, "std": None, "override": None, "imbalance": None}
    mean, square = (np.stack(train[name].tolist()).mean(0) for name in ("mean", "square"))
    numbers = {"mean": mean.round(4).tolist(), "std": np.sqrt((square - mean**2).clip(0)).round(4).tolist()}
    texts = {name: ",".join(f"{value:.4f}" for value in values) for name, values in numbers.items()}
    override = " ".join(f"data.{name}=[{text}]" for name, text in texts.items())
    counts = each_label(train)["label"].value_counts()
    ratio = round(float(counts.iloc[0] / counts.iloc[-1]), 2)
    imbalance = {"ratio": ratio, "largest": counts.index[0], "smallest": counts.index[-1]}
    return {**numbers, "override": override, "imbalance": imbalance}


def depths(table: pd.DataFrame, bits: int | None) -> list[dict[str, Any]]:
    """Returns for each type of numbers of more than 8 bits how many images have it, the largest number, what
    is white, how many bits are used, and the override that makes the largest of these bits white."""
    out = []
    for numbers, rows in table[table["numbers"] != ""].groupby("numbers"):
        white, peak = float(rows["white"].max()) if bits is None else 2.0**bits - 1, float(rows["peak"].max())
        uses = max(math.ceil(peak), 1).bit_length()
        right = 2**uses - 1 == white or (white == 1 and peak <= 1.5)  # floats may be a bit more than 1
        facts = {"numbers": numbers, "images": len(rows), "peak": peak, "white": white, "uses": uses}
        out.append({**facts, "override": None if right else f"data.bits={uses}"})
    return out


def near_duplicates(good: pd.DataFrame, distance: int) -> list[list[int]]:
    """Returns groups of rows, each a near duplicate of another in it; of duplicates one is taken."""
    rows = good.drop_duplicates("digest", keep="last")  # test comes last
    if not len(rows):
        return []
    thumbs = np.frombuffer(b"".join(rows["thumb"]), np.uint8).reshape(len(rows), -1)
    pairs = to_compare(rows["hash"].to_numpy(np.uint64), thumbs.mean(1), distance)
    pairs = pairs[alike(thumbs, pairs)]
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(rows), len(rows)))
    return repeated(pd.Series(connected_components(graph, directed=False)[1], index=rows.index))


def repeated(keys: "pd.Series[bytes] | pd.Series[int]") -> list[list[int]]:
    """Returns the rows of each key that several rows have."""
    shared = keys[keys.duplicated(keep=False)]
    return [sorted(rows) for rows in shared.groupby(shared).groups.values()]


def to_compare(hashes: np.ndarray, brightness: np.ndarray, distance: int) -> np.ndarray:
    """Returns the pairs of `near_pairs`, but not all where more than CROWD pictures have one hash, as blank
    ones do: each is compared with the CROWD that follow it in brightness, and CROWD of them stand for all
    against other hashes. The work does not grow with N squared."""
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
    `distance` is less than BANDS, so that two such hashes agree in all bits of one band at least: only those
    that do are compared (Norouzi et al. 2012)."""
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
        images = table.loc[group, COLUMNS].to_dict("records")
        images.sort(key=lambda image: (-SPLITS.index(image["split"]), image["file"]))
        leak, two_labels = (len({image[key] for image in images}) > 1 for key in ("split", "label"))
        out.append({"leak": leak, "two_labels": two_labels, "images": images})
    out.sort(key=lambda group: (not group["leak"], not group["two_labels"], group["images"][0]["file"]))
    return out


def write_exclude(found: dict[str, Any], path: Path) -> int:
    """Writes the list for `data.exclude=FILE`: unreadable files, and of each picture all copies but one, in
    test where there is one, else in val; of one with two labels all, as nobody knows which is right. No test
    copy of a leak is listed. Returns their number."""
    # A folder can't be listed, and deep files are no fault of their own: data.bits mends them.
    bad = (item for item in found["unreadable"] if "folder" not in item and not item["numbers"])
    lines = [(item["file"], item["reason"]) for item in bad]
    for group in found["duplicates"]:
        first, second, *_ = group["images"]
        for image in group["images"] if group["two_labels"] else group["images"][1:]:
            other = second if image is first else first
            label = f", which has the label {other['label']}" if other["label"] != image["label"] else ""
            if not (group["leak"] and image["split"] == "test"):
                lines.append((image["file"], f"the same picture as {other['file']}{label}"))
    text = "# Made by imgcls inspect, for data.exclude=FILE: a path relative to data.root a line.\n"
    for file, reason in lines:
        unlisted = "\n" in file or "\t#" in file
        start = "# can't be listed: " if unlisted else "./" if file.startswith("#") else ""
        text += f"{start}{file}\t# {reason}".replace("\n", "\\n") + "\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return len(lines)
