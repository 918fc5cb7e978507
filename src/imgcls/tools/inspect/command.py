"""imgcls inspect: what is in the data, and what is wrong with it, before anything is trained on it.

It works from the folders, so that all faults of a set are listed at once, also those that training refuses.
Nothing of the data is changed.
"""

import json
import logging
import math
import re
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from imgcls.commands.verb import verb
from imgcls.config import check as configs
from imgcls.config.paths import shown
from imgcls.config.training import Node
from imgcls.errors import UserError, one_line

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")  # of a picture's copies the last in this order stays


@dataclass(frozen=True)
class InspectConfig:
    """Keys of conf/inspect.yaml."""

    data: Node
    augment: Node
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    near: Annotated[int, Field(ge=0, le=6)] | None
    samples: Annotated[int, Field(ge=1, le=256)]


@verb("inspect", InspectConfig)
def main(config: InspectConfig, run_dir: Path) -> None:
    """Reads each image once, and writes what it finds into the run directory."""
    configs.check({"data": config.data})
    try:
        report(config, run_dir)
    except KeyboardInterrupt:
        log.error("interrupted")
        sys.exit(130)


def report(config: InspectConfig, run_dir: Path) -> None:
    """Reads, compares, writes, prints."""
    from imgcls.augment.image import Augment
    from imgcls.data.imagefolder import exclude_list
    from imgcls.data.loading.folders import left_out
    from imgcls.engine.build import prepare
    from imgcls.processes import cores
    from imgcls.tools.inspect.page import show, write
    from imgcls.tools.inspect.scan import Reader, list_files, list_memory, scan

    prepare(config.seed)
    options, unread = config.data, list[dict[str, str]]()
    data, folders, refused = prepared(options, configs.typed(config.augment, Augment, "augment"), config.seed)
    if folders is None:
        name = options.get("dataset", type(data).__name__)
        table, classes, reader = list_memory(data)
    else:
        root = Path(options["root"]).expanduser()
        name = shown(root)
        table, classes, unread = list_files(root, folders, exclude_list(options.get("exclude")))
        reader = Reader([str(root / file) for file in table["file"]], options.get("channels", 3))
        reader.max_pixels, reader.bits = options.get("max_pixels", reader.max_pixels), options.get("bits")
    start, workers = time.perf_counter(), options.get("num_workers")
    table = scan(table, reader, min(cores(), 16) if workers is None else workers)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"data": name, "training_refuses": refused, "seconds": round(seconds, 2)}
    found |= {
        "images_per_second": round(len(table) / seconds, 1),
        **findings(table, classes, unread, config.near),
    }
    found["deep"] = depths(table, options.get("bits"))
    found["left_out"] = [] if folders is None else left_out(root, folders.values())
    run_dir.mkdir(parents=True, exist_ok=True)
    found["excluded"] = 0 if folders is None else write_exclude(found, run_dir / "exclude.txt")
    unreadable = {reader.paths[i] for i in table.index[table["reason"].notna()]}
    seen = None if refused else samples(data, unreadable, config.samples)
    found["no_samples"] = (
        None if seen else "training refuses this data" if refused else "no image can be read"
    )
    write(run_dir, found, table, reader, seen)
    (run_dir / "inspect.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found, run_dir)


def prepared(
    config: dict[str, Any], augment: Any, seed: int
) -> tuple[Any, dict[str, Path] | None, str | None]:
    """Returns the datamodule as training has it (None where it can't be made), the folder of each split (None for a
    set in memory), and what training says against the data.

    Raises:
        UserError: the mistake is in the config, or there are no images to look at.
    """
    from imgcls.data.imagefolder import ImageFolder
    from imgcls.data.imagenet import ImageNet
    from imgcls.data.loading.folders import named_splits
    from imgcls.data.memory import MemoryDataModule
    from imgcls.data.module import ImageDataModule

    kind, data, refused = configs.locate(config["_target_"], "data._target_"), None, None
    if not (isinstance(kind, type) and issubclass(kind, (MemoryDataModule, ImageFolder))):
        target = config["_target_"]
        raise UserError(
            f"data: inspect reads image files and sets in memory, not {target}; give what it was made from"
        )
    try:
        data = configs.build(config, "data", ImageDataModule, seed=seed, augment=augment)
        data.prepare_data()
        data.setup()
    except UserError as error:
        if issubclass(kind, MemoryDataModule) or re.match(r"(data|augment)[.:]", str(error)):
            raise
        refused = one_line(error)
    if issubclass(kind, MemoryDataModule):
        return data, None, refused
    root = Path(config["root"]).expanduser()
    folders = data.folders if data is not None else named_splits(root) or {"train": root}
    if data is None and kind is ImageNet and "val" in folders:
        folders["test"] = folders.pop("val")
    return data, folders, refused


def findings(
    table: "pd.DataFrame", classes: "pd.DataFrame", unread: list[Any], near: int | None
) -> dict[str, Any]:
    """Returns what inspect.json says of the images of a table (`scan`).

    Args:
        classes: each split's class folders, also those without an image.
        unread: the folders that can't be read, and why.
        near: as in `near_duplicates`; None: they are not looked for.
    """
    from imgcls.tools.inspect.scan import duplicates, near_duplicates

    good, bad = table[table["reason"].isna()], table[table["reason"].notna()]
    counts = classes.join(good.groupby(["split", "label"]).size().rename("images"), on=["split", "label"])
    counts = counts.pivot_table(index="label", columns="split", values="images", aggfunc="sum", fill_value=0)
    counts = counts[[split for split in SPLITS if split in counts]].astype(int)
    absent = {
        str(label): {"in": [s for s in row if row[s]], "not_in": [s for s in row if not row[s]]}
        for label, row in counts.T.to_dict().items()
        if not all(row.values())
    }
    sizes = good.value_counts(["width", "height"]).reset_index(name="n")
    return {
        "images": len(good), "splits": counts.sum().to_dict(), "classes": counts.T.to_dict(), "absent": absent,
        "cut": [split for split in ("val", "test") if split not in counts],
        "sizes": {f"{row.width}×{row.height}": row.n for row in sizes.head(10).itertuples()}, "different_sizes": len(sizes),
        **({side: good[side].describe()[["min", "50%", "max"]].to_dict() for side in ("width", "height") if len(good)}),
        **{f"{name}s": good[name].value_counts().to_dict() for name in ("format", "mode")}, **statistics(good),
        "unreadable": unread + bad[["file", "reason", "numbers"]].to_dict("records"),
        "duplicates": described(table, duplicates(good)),
        "near_duplicates": [] if near is None else described(table, near_duplicates(good, near)),
    }  # fmt: skip


def statistics(good: "pd.DataFrame") -> dict[str, Any]:
    """Returns mean and standard deviation of each channel over the pixels in [0, 1] of the training images, each image
    counting alike, and the words that set them; and the largest class against the smallest."""
    import numpy as np

    train = good[good["split"] == "train"]
    if not len(train):
        return {"mean": None, "std": None, "override": None, "imbalance": None}
    mean, square = (np.stack(train[name].tolist()).mean(0) for name in ("mean", "square"))
    numbers = {"mean": mean.round(4).tolist(), "std": np.sqrt((square - mean**2).clip(0)).round(4).tolist()}
    words = " ".join(
        f"data.{name}=[{','.join(f'{v:.4f}' for v in values)}]" for name, values in numbers.items()
    )
    sizes = train["label"].value_counts()
    ratio, largest, smallest = sizes.iloc[0] / sizes.iloc[-1], sizes.index[0], sizes.index[-1]
    imbalance = {"ratio": round(float(ratio), 2), "largest": largest, "smallest": smallest}
    return {**numbers, "override": words, "imbalance": imbalance}


def depths(table: "pd.DataFrame", bits: int | None) -> list[dict[str, Any]]:
    """Returns for each type of numbers of images of more than 8 bits: how many there are, the largest number, what is
    white, and how many bits hold all of them, with the word that says so where that is not what is white now."""
    out = []
    for numbers, rows in table[table["numbers"] != ""].groupby("numbers"):
        white, peak = float(rows["white"].max()) if bits is None else 2.0**bits - 1, float(rows["peak"].max())
        uses = max(math.ceil(peak), 1).bit_length()
        right = 2**uses - 1 == white or (
            white == 1 and peak <= 1.5
        )  # of floats a bit more than 1 is no mistake
        facts = {"numbers": numbers, "images": len(rows), "peak": peak, "white": white, "uses": uses}
        out.append({**facts, "override": None if right else f"data.bits={uses}"})
    return out


def described(table: "pd.DataFrame", groups: list[list[int]]) -> list[dict[str, Any]]:
    """Returns each group of copies, the one that stays first; leaks come first, then those with two labels."""
    out = []
    for group in groups:
        images = table.loc[group, ["file", "split", "label"]].to_dict("records")
        images.sort(key=lambda image: (-SPLITS.index(image["split"]), image["file"]))
        leak, two = (len({image[key] for image in images}) > 1 for key in ("split", "label"))
        out.append({"leak": leak, "two_labels": two, "images": images})
    return sorted(
        out, key=lambda group: (not group["leak"], not group["two_labels"], group["images"][0]["file"])
    )


def write_exclude(found: dict[str, Any], path: Path) -> int:
    """Writes the list that `data.exclude=FILE` takes: files that can't be read, and of each picture all copies but one.

    The copy that stays is in test where there is one, else in val; no test copy of a leak is listed. Returns how many
    files are listed.
    """
    bad = (
        item for item in found["unreadable"] if "folder" not in item and not item["numbers"]
    )  # data.bits mends those
    lines = [(item["file"], item["reason"]) for item in bad]
    for group in found["duplicates"]:
        stays, *others = group["images"]
        for image in others:
            if not (group["leak"] and image["split"] == "test"):
                words = f", which has the label {stays['label']}" if group["two_labels"] else ""
                lines.append((image["file"], f"the same picture as {stays['file']}{words}"))
    text = "# Made by imgcls inspect, for data.exclude=FILE: a path relative to data.root a line.\n"
    for file, reason in lines:
        start = (
            "# can't be listed: " if "\n" in file or "\t#" in file else "./" if file.startswith("#") else ""
        )
        text += f"{start}{file}\t# {reason}".replace("\n", "\\n") + "\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return len(lines)


def samples(data: Any, unreadable: set[str], number: int) -> "tuple[list[Tensor], list[str]] | None":
    """Returns training images `(C, H, W) uint8` as the network sees them, but for the normalisation, and their labels;
    None where no image can be read."""
    import torch

    from imgcls.augment.batch import BatchAugment
    from imgcls.data.loading.sampler import EpochSampler

    dataset, spec = data.sets["train"], data.spec
    order = EpochSampler(len(dataset), data.seed, shuffle=True, training=True)
    if not (keys := list(islice((key for key in order if dataset.name(key) not in unreadable), number))):
        return None
    images, targets, _ = dataset.__getitems__(keys)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    augment = BatchAugment(data.augment, spec)
    mixed, shares = augment.mix((augment.pixels(images) / 255 - mean) / std, targets)
    labels = []
    for row in (shares if shares.ndim == 2 else torch.eye(spec.num_classes)[targets]).tolist():
        parts = [(share, name) for share, name in zip(row, spec.class_names, strict=True) if share > 0.005]
        labels.append(" + ".join(name if len(parts) == 1 else f"{share:.2f} {name}" for share, name in parts))
    return list(((mixed * std + mean) * 255).round().clamp(0, 255).byte()), labels
