"""Table of images: turns columns into targets, splits, groups and paths. A fault is one line with its row."""

import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from imgcls.data.loading.columns import RowError, fault
from imgcls.data.loading.folders import NAMES
from imgcls.data.loading.splits import SPLITS
from imgcls.errors import UserError, nearest
from imgcls.processes import rank

log = logging.getLogger(__name__)
LISTS = (list, tuple, np.ndarray)
ODD = (*LISTS, dict, bytes)  # the types of cells that are no text and no number
TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}


class Labels(NamedTuple):
    """Targets as in `Batch`, and the classes, of which measures have none."""

    targets: np.ndarray
    class_names: tuple[str, ...]


def text(file: Path, column: pd.Series) -> pd.Series:
    """Returns cells as text without blanks around it, of whole numbers without a point, "" for what lacks,
    letters in Unicode's composed form. Raises UserError for a cell that is no text and no number."""
    if is_float_dtype(column) and (column.dropna() % 1 == 0).all() and (column.dropna().abs() < 2**63).all():
        column = column.astype("Int64")
    if column.dtype == object:
        if (odd := column.map(lambda cell: isinstance(cell, ODD))).any():
            kind = type(column[odd].iloc[0]).__name__
            raise fault(file, odd, f"column {column.name!r} has a cell of the type {kind}; expected text")
        column = column.map(str, na_action="ignore")  # to a table of words, True would be 1
    codes, found = pd.factorize(column)  # each word is looked at once; what lacks is -1
    words = [unicodedata.normalize("NFC", str(word).strip()) for word in found]
    return pd.Series(np.array([*words, ""], dtype=object)[codes], dtype=object, name=column.name)


def filled(file: Path, column: pd.Series, what: str) -> pd.Series:
    """Returns cells as text. Raises UserError for an empty one, or one with a line break in it."""
    out = text(file, column)
    if (empty := out == "").any():
        raise fault(file, empty, f"the {what} in column {column.name!r} is empty")
    if broken := [word for word in out.unique() if len(word.splitlines()) > 1]:
        words = f"the {what} in column {column.name!r} has a line break: is a quote not closed?"
        raise fault(file, out.isin(broken), words)
    return out


def in_order(names: Iterable[str]) -> list[str]:
    """Returns names sorted: as numbers if all are whole numbers, else as text."""
    names = sorted(names)
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=int) if whole else names


def name_alike(names: Iterable[str], what: str) -> None:
    """Warns of names, such as of `what`, that a person may have meant as one."""
    plain = dict[str | float, str]()
    alike = [(first, name) for name in names if (first := plain.setdefault(meant(name), name)) != name]
    if alike and rank() == 0:
        more = f" ({len(alike)} pairs are so)" if len(alike) > 1 else ""
        log.warning("%r and %r are two %s%s; if they are one, give them one name", *alike[0], what, more)


def meant(name: str) -> str | float:
    """Returns what a name means to a person: a number, or letters in either case without blanks."""
    for number in (int, float):
        with suppress(ValueError):
            return number(name)
    letters = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in letters if letter.isprintable() and not letter.isspace())


def labels_of(file: Path, table: pd.DataFrame, columns: Sequence[str], separator: str | None) -> Labels:
    """Returns one class for each image; or labels of 0 and 1, where there are several columns, a separator,
    or cells that are lists. Raises UserError for an empty label, and for one that is neither 0 nor 1."""
    if len(columns) > 1:
        return Labels(np.stack([truth(file, table[name]) for name in columns], 1), tuple(columns))
    column = table[columns[0]]
    listed = column.map(lambda cell: isinstance(cell, LISTS))
    if column.dtype == object and listed.any():
        if not listed.all():
            raise fault(file, ~listed, f"the label in column {column.name!r} is no list, as others are")
        return several(file, column)
    if separator is not None:
        if column.isna().any():
            raise fault(file, column.isna(), f"the label in column {column.name!r} is empty")
        cells = text(file, column).map(lambda cell: [part for part in cell.split(separator) if part.strip()])
        return several(file, cells, twice=True)
    codes, found = pd.factorize(filled(file, column, "label"))
    name_alike(names := in_order(found), "labels")
    place = {name: i for i, name in enumerate(names)}
    return Labels(np.array([place[name] for name in found], np.int64)[codes], tuple(names))


def several(file: Path, cells: pd.Series, twice: bool = False) -> Labels:
    """Returns the labels `(N, K)` of cells that are lists. Raises UserError for a label that is empty or no
    text, for none at all, and without `twice` for a list with one label twice."""
    where = f"the list in column {cells.name!r}"
    rows = np.repeat(np.arange(len(cells)), [len(cell) for cell in cells])
    flat = pd.Series([label for cell in cells for label in cell], dtype=object, name=cells.name)
    odd = flat.map(lambda label: isinstance(label, ODD) or label != label or label is None or label == "")
    if odd.any():
        bad = np.isin(np.arange(len(cells)), rows[odd])
        raise fault(file, bad, f"{where} has an empty label, or one that is no text")
    codes, found = pd.factorize(text(file, flat.infer_objects()))
    if not len(found):
        raise UserError(f"{file}: no row has a label in column {cells.name!r}; expected some")
    name_alike(names := in_order(found), "labels")
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(cells), len(names)), np.int64)
    np.add.at(counts, (rows, np.array([place[name] for name in found])[codes]), 1)
    most = counts.max(1, initial=0)
    if not twice and most.max() > 1:
        words = "names a label twice; numbers for each label are given as columns of 0 and 1"
        raise fault(file, most > 1, f"{where} {words}")
    return Labels(np.minimum(counts, 1), tuple(names))


def truth(file: Path, column: pd.Series) -> np.ndarray:
    """Returns a column of 0 and 1 as `(N,) int64`."""
    cells = filled(file, column, "label").str.lower()
    found = cells.map(TRUTH)
    if (bad := found.isna()).any():
        given = cells[bad].iloc[0]
        raise fault(
            file, bad, f"column {column.name!r} has {given!r}; of several label columns each is 0 or 1"
        )
    return found.to_numpy(np.int64)


def measures_of(file: Path, table: pd.DataFrame, columns: Sequence[str]) -> Labels:
    """Returns numbers to be learned, `(N,) float32` of one column, `(N, M)` of several."""
    found = []
    for name in columns:
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
        if not (finite := np.isfinite(numbers)).all():
            given = table[name][~finite].iloc[0]
            raise fault(file, ~finite, f"column {name!r} has {given!r}; expected a finite number")
        found.append(numbers.astype(np.float32))
    return Labels(found[0] if len(found) == 1 else np.stack(found, 1), ())


def splits_of(file: Path, column: pd.Series) -> np.ndarray:
    """Returns the place in SPLITS of each row's split, `(N,) int64`."""
    cells = filled(file, column, "split").str.lower()
    found = cells.map({name: SPLITS.index(split) for name, split in SPLIT_OF.items()})
    if (bad := found.isna()).any():
        given = cells[bad].iloc[0]
        raise fault(file, bad, f"the split {given!r} is unknown; {nearest(given, SPLIT_OF, most=12)}")
    if not (found == 0).any():
        raise UserError(f"{file} has no row of the split train in column {column.name!r}; expected some")
    return found.to_numpy(np.int64)


def groups_of(file: Path, column: pd.Series, splits: np.ndarray | None) -> np.ndarray:
    """Returns a number for each row's group, `(N,) int64`. Raises UserError: a group is in two splits."""
    cells = filled(file, column, "group")
    codes, found = pd.factorize(cells)
    name_alike(found, "groups")
    if splits is None:
        return codes
    first = np.full(len(found), -1)
    first[codes[::-1]] = splits[::-1]  # of each group the split of its first row, which is written last
    if (elsewhere := first[codes] != splits).any():
        row = int(elsewhere.argmax())
        other = int((codes == codes[row]).argmax())
        words = f"the group {cells[row]!r} is in {SPLITS[splits[row]]}, and in {SPLITS[splits[other]]} in "
        raise RowError(file, [row, f": {words}", other, "; a group must be in one split"])
    return codes


def paths_of(file: Path, column: pd.Series, root: Path) -> tuple[Path, list[str]]:
    """Returns a folder and the path of each image below it: `root`, or `/` where a path is absolute. Raises
    UserError: a path is empty, comes twice, or there is no such file."""
    paths = [str(path) for path in column.astype(object).where(column.notna(), "")]
    if not all(map(str.strip, paths)):
        empty = np.array([not path.strip() for path in paths])
        raise fault(file, empty, f"the path in column {column.name!r} is empty")
    if any(path.startswith("/") for path in paths):
        paths = [os.path.join(root.absolute(), path).lstrip("/") for path in paths]
        root = Path("/")
    plain = [os.path.normpath(path) if "./" in path or "//" in path else path for path in paths]
    if len(set(plain)) < len(plain):
        twice = pd.Series(plain, dtype=object).duplicated()
        row = int(twice.to_numpy().argmax())
        other = plain.index(plain[row]) + 1
        raise fault(file, twice, f"{column[row]} is in row {other}, too; expected each image once")
    if (missing := absent(root, paths)).any():
        where = "" if root == Path("/") else f"; paths are relative to {root}: is data.root right?"
        raise fault(file, missing, f"there is no file {column[int(missing.argmax())]}{where}")
    return root, paths


def absent(root: Path, paths: list[str]) -> np.ndarray:
    """Returns for each path below `root` whether there is no such file `(N,) bool`; each folder is listed
    once, because a file system in a network may take a millisecond to look for each file."""
    inside, out = dict[str, set[str]](), np.zeros(len(paths), bool)
    for row, path in enumerate(paths):
        folder, _, name = path.rpartition("/")
        if folder not in inside:
            try:
                inside[folder] = set(os.listdir(root / folder))
            except OSError:
                inside[folder] = set()
        out[row] = name not in inside[folder]
    return out
