"""Findings of `imgcls inspect`: turns the table of a scan into the facts of inspect.json, and exclude.txt."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imgcls.tools.inspect.copies import described, duplicates, near_duplicates
from imgcls.tools.inspect.scan import SPLITS, Listing


def findings(listing: Listing, table: pd.DataFrame, near: int | None, bits: int | None) -> dict[str, Any]:
    """Returns what inspect.json says of the images of a scan.

    Args:
        near: as in `near_duplicates`; None: they are not looked for.
        bits: as in `decode`.
    """
    good, bad = table[table["reason"].isna()], table[table["reason"].notna()]
    splits = [split for split in SPLITS if split in set(listing.classes["split"])]
    labels = sorted(set(listing.classes["label"]))
    counts = pd.crosstab(good["label"], good["split"]).reindex(index=labels, columns=splits, fill_value=0)
    return {
        "images": len(good),
        "splits": counts.sum().to_dict(),
        "classes": counts.T.to_dict(),
        "absent": absent(counts),
        "cut": [split for split in ("val", "test") if split not in counts],
        **sizes(good),
        **{f"{name}s": good[name].value_counts().to_dict() for name in ("format", "mode")},
        **statistics(good[good["split"] == "train"]),
        "unreadable": listing.unread + bad[["file", "reason", "numbers"]].to_dict("records"),
        "duplicates": described(table, duplicates(good)),
        "near_duplicates": [] if near is None else described(table, near_duplicates(good, near)),
        "deep": depths(table, bits),
        "left_out": listing.left_out,
    }


def absent(counts: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Returns the classes that a split lacks: which splits have images of the class, and which have none."""
    return {
        str(label): {"in": [split for split in row if row[split]], "not_in": [s for s in row if not row[s]]}
        for label, row in counts.T.to_dict().items()
        if not all(row.values())
    }


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
    counts = train["label"].value_counts()
    ratio = round(float(counts.iloc[0] / counts.iloc[-1]), 2)
    imbalance = {"ratio": ratio, "largest": counts.index[0], "smallest": counts.index[-1]}
    return {**numbers, "override": override, "imbalance": imbalance}


def depths(table: pd.DataFrame, bits: int | None) -> list[dict[str, Any]]:
    """Returns the facts of images of more than 8 bits for each type of their numbers: how many images, the
    largest number, what is white, how many bits are used, and the override that makes the largest of these
    bits white."""
    out = []
    for numbers, rows in table[table["numbers"] != ""].groupby("numbers"):
        white, peak = float(rows["white"].max()) if bits is None else 2.0**bits - 1, float(rows["peak"].max())
        uses = max(math.ceil(peak), 1).bit_length()
        right = 2**uses - 1 == white or (white == 1 and peak <= 1.5)  # floats may be a bit more than 1
        facts = {"numbers": numbers, "images": len(rows), "peak": peak, "white": white, "uses": uses}
        out.append({**facts, "override": None if right else f"data.bits={uses}"})
    return out


def write_exclude(found: dict[str, Any], path: Path) -> int:
    """Writes the list for `data.exclude=FILE`: unreadable files, and of each picture all copies but one.

    The copy that stays is in test where there is one, else in val; no test copy of a leak is listed. Returns
    how many files are listed.
    """
    # A folder can't be listed, and deep files are no fault of their own: data.bits mends them.
    bad = (item for item in found["unreadable"] if "folder" not in item and not item["numbers"])
    lines = [(item["file"], item["reason"]) for item in bad]
    for group in found["duplicates"]:
        stays, *others = group["images"]
        label = f", which has the label {stays['label']}" if group["two_labels"] else ""
        for image in others:
            if not (group["leak"] and image["split"] == "test"):
                lines.append((image["file"], f"the same picture as {stays['file']}{label}"))
    text = "# Made by imgcls inspect, for data.exclude=FILE: a path relative to data.root a line.\n"
    for file, reason in lines:
        start = "./" if file.startswith("#") else ""
        if "\n" in file or "\t#" in file:
            start = "# can't be listed: "
        text += f"{start}{file}\t# {reason}".replace("\n", "\\n") + "\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return len(lines)
