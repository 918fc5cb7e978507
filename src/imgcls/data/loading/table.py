"""Table of images: turns columns into targets, splits, groups and paths. A fault is one line with its row."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from imgcls.data.loading.columns import fault
from imgcls.data.loading.folders import NAMES
from imgcls.data.loading.splits import SPLITS
from imgcls.errors import UserError, nearest

TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}


class Labels(NamedTuple):
    """Targets as in `Batch`, and the classes, of which measures have none."""

    targets: np.ndarray
    class_names: tuple[str, ...]


def text(column: pd.Series) -> pd.Series:
    """Returns cells as text without blanks around it, of whole numbers without a point, "" for what lacks."""
    if is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    codes, found = pd.factorize(column)  # each word is looked at once; what lacks is -1
    words = np.array([*(str(word).strip() for word in found), ""], dtype=object)
    return pd.Series(words[codes], dtype=object, name=column.name)


def filled(file: Path, column: pd.Series, what: str) -> pd.Series:
    """Returns cells as text. Raises UserError for an empty one."""
    out = text(column)
    if (empty := out == "").any():
        raise fault(file, empty, f"the {what} in column {column.name!r} is empty")
    return out


def in_order(names: Iterable[str]) -> list[str]:
    """Returns names sorted: as numbers if all are whole numbers, else as text."""
    names = list(names)
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=int) if whole else sorted(names)


def labels_of(file: Path, table: pd.DataFrame, columns: Sequence[str], separator: str | None) -> Labels:
    """Returns one class for each image; or labels of 0 and 1, where there are several columns, a separator,
    or cells that are lists. Raises UserError for an empty label, and for one that is neither 0 nor 1."""
    if len(columns) > 1:
        return Labels(np.stack([truth(file, table[name]) for name in columns], 1), tuple(columns))
    column = table[columns[0]]
    listed = column.map(lambda cell: isinstance(cell, list | tuple | np.ndarray))
    if column.dtype == object and listed.any():
        if not listed.all():
            raise fault(file, ~listed, f"the label in column {column.name!r} is no list, as others are")
        return several(column.map(lambda cell: tuple(str(label) for label in cell)), lambda cell: cell)
    if separator is not None:
        if column.isna().any():
            raise fault(file, column.isna(), f"the label in column {column.name!r} is empty")
        return several(text(column), lambda cell: [part.strip() for part in cell.split(separator)])
    codes, found = pd.factorize(filled(file, column, "label"))
    names = in_order(found)
    place = {name: i for i, name in enumerate(names)}
    return Labels(np.array([place[name] for name in found], np.int64)[codes], tuple(names))


def several(cells: pd.Series, labels_in: Callable[..., Iterable[str]]) -> Labels:
    """Returns the labels `(N, K)` of cells, each with several or none; equal cells are read once."""
    codes, found = pd.factorize(cells)
    sets = [[label for label in labels_in(cell) if label] for cell in found]
    names = in_order({label for labels in sets for label in labels})
    place = {name: i for i, name in enumerate(names)}
    rows = np.zeros((len(found), len(names)), np.int64)
    for row, labels in zip(rows, sets, strict=True):
        row[[place[label] for label in labels]] = 1
    return Labels(rows[codes], tuple(names))


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
    if splits is None:
        return codes
    first = np.full(len(found), -1)
    first[codes[::-1]] = splits[::-1]  # of each group the split of its first row, which is written last
    if (elsewhere := first[codes] != splits).any():
        row = int(elsewhere.argmax())
        other = int((codes == codes[row]).argmax())
        words = f"the group {cells[row]!r} is in {SPLITS[splits[row]]}, and in {SPLITS[splits[other]]} in row"
        raise UserError(f"{file}, row {row + 1}: {words} {other + 1}; a group must be in one split")
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
