"""Layouts of ImageNet and its variants: which folder holds what."""

import os
from pathlib import Path
from typing import Literal

from imgcls.data.loading.decode import is_image
from imgcls.data.loading.folders import NAMES, named, subfolders
from imgcls.errors import UserError

TARS = {"val": "ILSVRC2012_img_val.tar", "train": "ILSVRC2012_img_train.tar"}  # the smaller one first
KAGGLE = "ILSVRC/Data/CLS-LOC"
BASES = ("", KAGGLE, KAGGLE.partition("/")[2])  # where train and val lie, below the root
LAYOUTS = (
    "root/train/<WordNet id>/… and root/val/<WordNet id>/…, root/val alone (to evaluate), "
    f"root/val/ILSVRC2012_val_00000001.JPEG …, Kaggle's root/{KAGGLE}/…, or in root "
    f"{' and '.join(TARS.values())}"
)

Variant = Literal["v2", "real", "a", "r", "sketch", "c"]
PUBLISHED = {"v2": 1000, "a": 200, "r": 200, "sketch": 1000, "c": 1000}  # how many classes each has
FOLDERS = {  # what the folder of a variant is called, as it is published, and what is in it
    "v2": ("imagenetv2-", "<class from 0 to 999>/…"),
    "a": ("imagenet-a", "<WordNet id>/…"),
    "r": ("imagenet-r", "<WordNet id>/…"),
    "sketch": ("sketch", "<WordNet id>/…"),
}


def base_of(root: Path) -> Path:
    """Returns the folder that holds train, val or the tar files. UserError: there is none."""
    for base in (root / below for below in BASES):
        if not base.is_dir():
            continue
        if any(named(base, NAMES[s]) or (base / TARS[s]).is_file() for s in TARS):
            return base
    raise UserError(f"data.root={root} holds no ImageNet; expected {LAYOUTS}")


def split_folder(base: Path, split: str) -> Path:
    """Returns the folder of a split, in upper or lower case, whether it is there or not."""
    return next(iter(named(base, NAMES[split])), base / split)


def flat_images(folder: Path) -> list[str]:
    """Returns the names of the images that lie in a folder itself, sorted; none where there are folders."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(entry.name for entry in entries if is_image(entry.name))


def variant_folder(root: Path, variant: Variant, corruption: str | None, severity: int | None) -> Path:
    """Returns the folder that holds the class folders of a variant, which is the root or lies in it.
    UserError: there is none, or several."""
    if variant == "c":
        return corrupted_folder(root, corruption, severity)
    start, inside = FOLDERS[variant]
    names = subfolders(root)
    found = [name for name in names if name.lower().startswith(start)]
    if len(found) > 1:
        raise UserError(f"data.root={root} has {', '.join(found)}; give one of them as data.root")
    folder = root / found[0] if found else root
    if not any(is_class(name) for name in subfolders(folder)):
        expected = f"expected root/{inside} or root/{start}{'…' if start.endswith('-') else ''}/{inside}"
        raise UserError(f"data.root={root} holds no data.variant={variant}; {expected}")
    return folder


def is_class(name: str) -> bool:
    """Says whether a folder is called as the classes of variants are: n01440764, or 0 to 999."""
    return name.removeprefix("n").isdigit()


def corrupted_folder(root: Path, corruption: str | None, severity: int | None) -> Path:
    """Returns the folder of a corruption and severity of ImageNet-C; they may lie in the folders of the
    archives (blur, digital, extra, noise, weather). UserError: it is not there, or not said which."""
    parents = [root, *(root / name for name in subfolders(root))]
    there = {path.name: path for parent in parents for path in severities(parent)}
    listed = ", ".join(sorted(there)) or "none"
    expected = f"expected root/<corruption>/<severity>/<WordNet id>/…; corruptions in {root}: {listed}"
    if corruption is None or severity is None:
        needs = "data.variant=c: give data.corruption=NAME and data.severity=1 to 5"
        raise UserError(f"{needs}; {expected}")
    if corruption not in there or not (folder := there[corruption] / str(severity)).is_dir():
        given = f"data.corruption={corruption} data.severity={severity}"
        raise UserError(f"{given}: there is no such folder; {expected}")
    return folder


def severities(folder: Path) -> list[Path]:
    """Returns the folders in a folder that have a folder for each severity, or for some."""
    inner = [folder / name for name in subfolders(folder) if not is_class(name)]
    return [path for path in inner if {"1", "2", "3", "4", "5"} & set(subfolders(path))]
