"""Labels of ImageNet's validation images by their file names, and the names of the classes.

imagenet_val_labels.txt.gz holds the class (0 to 999, by sorted WordNet id) of each validation image in
the order of the files; from TensorFlow Datasets (Apache-2.0), `datasets/imagenet2012/validation_labels.txt`.
"""

import functools
import gzip
import importlib.resources
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from imgcls.errors import UserError

T = TypeVar("T")
IMAGE = "ILSVRC2012_val_{:08}"  # the name of an official validation image, counted from 1
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # of the development kit, beside its meta.mat
BESIDE = ("LOC_val_solution.csv", GROUND_TRUTH, f"ILSVRC2012_devkit_t12/data/{GROUND_TRUTH}", "val.txt")


@functools.cache
def class_words() -> dict[str, str]:
    """Returns the words for each WordNet id: the first synonym, or as many as make it unique."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    words = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
    short = {wnid: text.split(",")[0] for wnid, text in words.items()}
    for longer in (words, {wnid: f"{text} ({wnid})" for wnid, text in words.items()}):
        counts = Counter(short.values())
        short = {wnid: text if counts[text] == 1 else longer[wnid] for wnid, text in short.items()}
    return short


@functools.cache
def wordnet_ids() -> list[str]:
    """Returns the WordNet ids of the 1,000 classes, in the order of published weights."""
    return sorted(class_words())


def wordnet_id(name: str) -> str | None:
    """Returns the WordNet id of a class: of itself, or of its number from 0 to 999; None: it is neither."""
    if re.fullmatch(r"[0-9]{1,3}", name):
        return wordnet_ids()[int(name)]
    return name if name in class_words() else None


def official_labels() -> list[str]:
    """Returns the WordNet id of each validation image, in the order of the files."""
    packed = importlib.resources.files("imgcls.data").joinpath("imagenet_val_labels.txt.gz").read_bytes()
    return [wordnet_ids()[int(line)] for line in gzip.decompress(packed).split()]


def labels_of(names: Sequence[str], file: Path | None) -> list[str]:
    """Returns the WordNet ids of validation images, whose file names these are, by a file of labels
    (`read_labels`), or without one (None) by their official names. UserError: an image has no label."""
    labels = numbered(official_labels()) if file is None else read_labels(file)
    return look_up(names, labels, file)


def real_labels_of(names: Sequence[str], file: Path | None) -> list[list[int]]:
    """Returns the ReaL labels of validation images, classes from 0 to 999: none, one or several for each.

    Args:
        names: the names of their files.
        file: real.json; None: as timm ships it.

    Raises UserError: the file is another's, or an image has no entry in it.
    """
    if file is None:
        from timm.data import RealLabelsImagenet

        found = RealLabelsImagenet([""] * 50_000).real_labels
        labels = {Path(name).stem: classes for name, classes in found.items()}
    else:
        try:
            labels = numbered(json.loads(file.read_text()))
            if not all(type(c) is int and 0 <= c < 1000 for classes in labels.values() for c in classes):
                raise ValueError
        except (OSError, ValueError, TypeError, RecursionError) as error:
            expected = "expected real.json of ReaL: a list with a list of classes, 0 to 999, for each image"
            raise UserError(f"{file} can't be read; {expected}") from error
    return look_up(names, labels, file)


def labels_beside(folders: Iterable[Path], names: Iterable[str] = BESIDE) -> Path | None:
    """Returns the first file with one of these names that lies in one of the folders."""
    return next((folder / name for name in names for folder in folders if (folder / name).is_file()), None)


def read_labels(file: Path) -> dict[str, str]:
    """Returns the WordNet id of each image that a file of labels names, by the name without its ending.

    The file is Kaggle's LOC_val_solution.csv, or the ground truth of the development kit with meta.mat
    beside it, or has a line for each image: its name and its class, or in the order of the files the class
    alone. A class is a WordNet id or its place from 0 to 999 among these, sorted. UserError: it is none.
    """
    try:
        read = file.read_text(encoding="utf-8-sig")  # Excel writes a mark at the start
        lines = [re.sub('[,"]', " ", line).split() for line in read.splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read ({' '.join(str(error).split())})") from error
    rows = [line for line in lines if line and line[0] != "ImageId"]
    if file.name == GROUND_TRUTH:
        ids = numbers_of_the_kit(file.with_name("meta.mat"))
        rows = [[ids.get(row[0], row[0])] for row in rows]
    labels = numbered([row[0] for row in rows])
    if not all(len(row) == 1 for row in rows):
        labels = {Path(row[0]).stem: "".join(row[1:2]) for row in rows}
    found = {}
    for name, label in labels.items():
        if (wnid := wordnet_id(label)) is None:
            expected = "expected a WordNet id of ImageNet-1k, or its place from 0 to 999"
            raise UserError(f"{file} gives {name} the class {label!r}; {expected}")
        found[name] = wnid
    return found


def numbers_of_the_kit(file: Path) -> dict[str, str]:
    """Returns the WordNet id of each ILSVRC2012_ID, which meta.mat of the development kit says."""
    import scipy.io

    try:
        synsets = scipy.io.loadmat(file, squeeze_me=True)["synsets"]
        return {str(number): str(wnid) for number, wnid in synsets[["ILSVRC2012_ID", "WNID"]].tolist()}
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        expected = f"{GROUND_TRUTH} has numbers whose classes meta.mat of the development kit says"
        raise UserError(f"{file} can't be read; {expected}: put it there") from error


def numbered(values: Sequence[T]) -> dict[str, T]:
    """Returns the values of the official validation images, in the order of the files, by their names."""
    return {IMAGE.format(number): value for number, value in enumerate(values, 1)}


def look_up(names: Sequence[str], values: Mapping[str, T], file: Path | None) -> list[T]:
    stems = [Path(name).stem for name in names]
    if lacking := [name for name, stem in zip(names, stems, strict=True) if stem not in values]:
        expected = f"expected names such as {IMAGE.format(1)}.JPEG, or data.labels=FILE with a label for each"
        where = "among the official validation images" if file is None else f"in {file}"
        raise UserError(f"{lacking[0]} is not {where} ({len(lacking):,} such images); {expected}")
    return [values[stem] for stem in stems]
