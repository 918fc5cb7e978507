"""Prediction files: writes what was predicted as CSV, JSON lines or Parquet, batch by batch."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROW_GROUP = 4096  # rows of a Parquet file that are held in memory


class Rows(NamedTuple):
    """Predictions for N images: paths, and from the best down their k labels and `probabilities (N, k)`.
    `embeddings (N, D)` are there if asked for."""

    paths: list[str]
    labels: list[list[str]]
    probabilities: np.ndarray
    embeddings: np.ndarray | None


Write = Callable[[Rows], None]


def writer(path: Path, embedding: bool) -> contextlib.AbstractContextManager[Write]:
    """Returns a context with the function that writes a batch, in the format of the path's ending."""
    if path.suffix == ".parquet":
        return parquet_writer(path, embedding)
    return csv_writer(path) if path.suffix == ".csv" else jsonl_writer(path)


@contextlib.contextmanager
def csv_writer(path: Path) -> Iterator[Write]:
    """Columns: path, label_1, probability_1, …, embedding_0, …; the header comes with the first batch."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)

        def write(rows: Rows) -> None:
            if not file.tell():
                ranks = range(1, 1 + rows.probabilities.shape[1])
                size = 0 if rows.embeddings is None else rows.embeddings.shape[1]
                head = [f"{word}_{rank}" for rank in ranks for word in ("label", "probability")]
                table.writerow(["path", *head, *(f"embedding_{i}" for i in range(size))])
            for path, labels, numbers, embedding in cells(rows):
                pairs = [cell for pair in zip(labels, numbers, strict=True) for cell in pair]
                table.writerow([path, *pairs, *embedding])

        yield write


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Write]:
    """An object a line: path, labels, probabilities, embedding."""
    with path.open("w", encoding="utf-8") as file:

        def write(rows: Rows) -> None:
            for path, labels, numbers, embedding in cells(rows):
                row = {"path": path, "labels": labels, "probabilities": numbers}
                file.write(json.dumps(row | {"embedding": embedding} if embedding else row) + "\n")

        yield write


@contextlib.contextmanager
def parquet_writer(path: Path, embedding: bool) -> Iterator[Write]:
    """Columns: path, labels, probabilities, embedding; the last three are lists."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    numbers, words = pa.list_(pa.float32()), pa.list_(pa.string())
    kinds = {"path": pa.string(), "labels": words, "probabilities": numbers}
    if embedding:
        kinds["embedding"] = numbers
    schema, held = pa.schema(list(kinds.items())), list[dict[str, Any]]()
    with ParquetWriter(path, schema) as file:

        def write(rows: Rows) -> None:
            names = [path.encode(errors="backslashreplace").decode() for path in rows.paths]  # UTF-8 only
            columns = (names, rows.labels, rows.probabilities, rows.embeddings)
            for row in zip(*(column for column in columns if column is not None), strict=True):
                held.append(dict(zip(kinds, row, strict=True)))
            if len(held) >= ROW_GROUP:
                file.write_table(pa.Table.from_pylist(held, schema))
                held.clear()

        yield write
        if held:
            file.write_table(pa.Table.from_pylist(held, schema))


def cells(rows: Rows) -> Iterator[tuple[str, list[str], list[float], list[float]]]:
    """Yields path, labels, probabilities and embedding (empty where there is none) of each image."""
    embeddings = [[]] * len(rows.paths) if rows.embeddings is None else shortest(rows.embeddings)
    return zip(rows.paths, rows.labels, shortest(rows.probabilities), embeddings, strict=True)


def shortest(numbers: np.ndarray) -> list[list[float]]:
    """Returns float32 as the floats whose digits are the fewest that tell it from its neighbours."""
    return numbers.astype(str).astype(float).tolist()
