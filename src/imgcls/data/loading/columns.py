"""Columns of a table: read from a CSV, Parquet or JSON-lines file; text and numbers into pandas, image
files into one array of bytes. Rows are counted from 1, without the header."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imgcls.errors import UserError, nearest

# Text is kept in Python's strings: those of Arrow, which pandas takes where pyarrow is installed, refuse file
# names that are no UTF-8. A million rows are read as fast, in less memory.
pd.set_option("mode.string_storage", "python")

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".parquet", ".jsonl")
NO_PYARROW = "needs the package pyarrow, which is not installed; in the clone: pip install -e '.[table]'"


def check_file(file: Path) -> None:
    """Raises UserError where there is no table that can be read."""
    if not file.is_file():
        raise UserError(f"data.file={file}: there is no such file; expected {' or '.join(ENDINGS)}")
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"data.file={file}: expected a file that ends in {' or '.join(ENDINGS)}")
    if file.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"data.file={file} {NO_PYARROW}")


def read_columns(file: Path, wanted: dict[str, str]) -> pd.DataFrame:
    """Returns the columns of a table that are wanted, by the name in the table: `wanted` has the config's key
    for each. All cells of a CSV are text. Raises UserError: the file can't be read, or lacks a column."""
    check_file(file)
    kind = file.suffix.lower()
    try:
        if kind in SEPARATORS:
            how: dict[str, Any] = {"sep": SEPARATORS[kind], "dtype": str, "keep_default_na": False}
            # As a row: in a header pandas gives a name that comes twice another name.
            head = pd.read_csv(file, nrows=1, header=None, encoding="utf-8-sig", **how)
            check_columns(file, head.loc[0].tolist(), wanted)
            table = pd.read_csv(file, **how)  # with `usecols` it would drop cells beyond the header's
            if not isinstance(table.index, pd.RangeIndex):
                raise ValueError("its rows have more cells than its header")
        elif kind == ".parquet":
            import pyarrow.parquet

            check_columns(file, pyarrow.parquet.read_schema(file).names, wanted)
            found = pyarrow.parquet.read_table(file, columns=list(wanted), partitioning=None)
            table = found.to_pandas(ignore_metadata=True)  # a column that was pandas' index is one, too
        else:
            table = pd.read_json(file, lines=True, dtype=False, encoding="utf-8-sig")
            check_columns(file, [str(name) for name in table.columns], wanted)
    except (OSError, ValueError) as error:  # those of pandas and pyarrow are ValueErrors
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        text = " in UTF-8" if isinstance(error, UnicodeError) else ""
        raise UserError(
            f"data.file={file} can't be read ({reason}); expected a whole {kind} file{text}"
        ) from error
    if not len(table):
        raise UserError(f"data.file={file} has no rows; expected one for each image")
    return table[list(wanted)]


def check_columns(file: Path, names: Iterable[str], wanted: dict[str, str]) -> None:
    """Raises UserError for a wanted column that is not one of the names, or more than one."""
    names = list(names)
    if len(names) == 1 and (cut := [mark for mark in ";\t|," if mark in names[0]]):
        fault = f"the cells of its first row are separated by {cut[0]!r}"
        raise UserError(f"data.file={file}: {fault}; expected ',' in a .csv, and tabs in a .tsv")
    for name, key in wanted.items():
        if names.count(name) > 1:
            fault = f"{file} has {names.count(name)} columns of this name"
            raise UserError(f"data.{key}={name}: {fault}; give each a name of its own")
        if name not in names:
            raise UserError(f"data.{key}={name}: {file} has no such column; {nearest(name, names)}")


class RowError(UserError):
    """A fault in a row of a file. Its message is made of `parts`, in which a number is a row, from 0."""

    def __init__(
        self, file: Path, parts: Sequence[str | int], named: Callable[[int], str] = "row {}".format
    ) -> None:
        words = [part if isinstance(part, str) else named(part + 1) for part in parts]
        super().__init__(f"{file}, {''.join(words)}")
        self.file, self.parts = file, parts

    def within(self, sizes: Mapping[str, int]) -> "RowError":
        """Returns the same fault of a file whose rows are those of splits, one after another."""
        ends = np.cumsum(list(sizes.values()))

        def named(row: int) -> str:
            place = int(np.searchsorted(ends, row))
            return f"row {row - ([0, *ends])[place]} of {list(sizes)[place]}"

        return RowError(self.file, self.parts, named)


def fault(file: Path, bad: "np.ndarray | pd.Series[bool]", words: str) -> RowError:
    """Returns the error of the first row that is bad `(N,) bool`, with the number of the others."""
    rows = np.flatnonzero(bad)
    others = f" ({len(rows):,} rows are so)" if len(rows) > 1 else ""
    return RowError(file, [int(rows[0]), f": {words}{others}"])


def holds_files(file: Path, name: str) -> bool:
    """Says whether a column of a table holds bytes of files: binary, or a struct of `bytes` and `path`."""
    if file.suffix.lower() != ".parquet":
        return False
    check_file(file)  # before pyarrow is imported, which may not be there
    import pyarrow as pa
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, ValueError):  # `read_columns` says it
        return False
    kind = schema.field(name).type if name in schema.names else pa.string()
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def files_in(file: Path, name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns what a column of bytes holds: all files one after another `(n,) uint8`, where each begins and
    ends `(N, 2) int64`, and what each is called: its path where each has one of its own, else its row."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet

    compute: Any = pyarrow.compute  # it makes its functions as it is imported
    column = pyarrow.parquet.read_table(file, columns=[name]).column(name)
    names = [f"{file.name}, row {row + 1}" for row in range(len(column))]
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("path") >= 0:
            paths = [path for path in compute.struct_field(column, "path").to_pylist() if path]
            names = paths if len(set(paths)) == len(names) else names
        column = compute.struct_field(column, "bytes")
    if column.null_count:
        raise fault(file, column.is_null().to_numpy(), f"column {name!r} holds no image")
    column = column.cast(pa.large_binary())
    ends = np.cumsum(compute.binary_length(column).to_numpy())
    stored, chunks, at = np.empty(int(ends[-1]), np.uint8), column.chunks, 0
    del column
    while chunks:  # each is given back when it is copied
        chunk = chunks.pop(0)
        _, offsets, content = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int64)[chunk.offset :][: len(chunk) + 1]
        size = int(bounds[-1] - bounds[0])
        if size:
            stored[at : at + size] = np.frombuffer(content, np.uint8)[bounds[0] : bounds[-1]]
        at += size
    return stored, np.stack([np.append(0, ends[:-1]), ends], 1), names
