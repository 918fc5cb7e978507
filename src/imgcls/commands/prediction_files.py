"""What was predicted, as a file of comma-separated values, JSON lines or Parquet, written batch by batch."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROW_GROUP = 4096  # rows of a Parquet file that are held in memory


class Rows(NamedTuple):
    """What was predicted for N images: their paths, their k best labels from the best down, the `probabilities (N, k)`
    of these, and `embeddings (N, D)` if asked for."""

    paths: list[str]
    labels: list[list[str]]
    probabilities: np.ndarray
    embeddings: np.ndarray | None


def writer(path: Path, embedding: bool) -> contextlib.AbstractContextManager[Callable[[Rows], None]]:
    """Returns a context with the function that writes a batch, in the format of the path's ending."""
    if path.suffix == ".parquet":
        return parquet_writer(path, embedding)
    return csv_writer(path) if path.suffix == ".csv" else jsonl_writer(path)


@contextlib.contextmanager
def csv_writer(path: Path) -> Iterator[Callable[[Rows], None]]:
    """Columns: path, label_1, probability_1, …, embedding_0, …; the header comes with the first batch."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)

        def write(rows: Rows) -> None:
            embeddings = [[]] * len(rows.paths) if rows.embeddings is None else shortest(rows.embeddings)
            if not file.tell():
                ranks = range(1, 1 + rows.probabilities.shape[1])
                header = [f"{word}_{rank}" for rank in ranks for word in ("label", "probability")]
                table.writerow(["path", *header, *(f"embedding_{i}" for i in range(len(embeddings[0])))])
            for path, labels, numbers, embedding in zip(
                rows.paths, rows.labels, shortest(rows.probabilities), embeddings, strict=True
            ):
                pairs = [cell for pair in zip(labels, numbers, strict=True) for cell in pair]
                table.writerow([path, *pairs, *embedding])

        yield write


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Callable[[Rows], None]]:
    """An object a line: path, labels, probabilities, embedding."""
    with path.open("w", encoding="utf-8") as file:

        def write(rows: Rows) -> None:
            columns = {
                "path": rows.paths,
                "labels": rows.labels,
                "probabilities": shortest(rows.probabilities),
            }
            if rows.embeddings is not None:
                columns["embedding"] = shortest(rows.embeddings)
            for row in zip(*columns.values(), strict=True):
                file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")

        yield write


@contextlib.contextmanager
def parquet_writer(path: Path, embedding: bool) -> Iterator[Callable[[Rows], None]]:
    """Columns: path, labels, probabilities, embedding; the last three are lists."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    numbers, words = pa.list_(pa.float32()), pa.list_(pa.string())
    kinds = {"path": pa.string(), "labels": words, "probabilities": numbers, "embedding": numbers}
    schema = pa.schema([item for item in kinds.items() if embedding or item[0] != "embedding"])
    held: list[dict[str, Any]] = []
    with ParquetWriter(path, schema) as file:

        def flush() -> None:
            file.write_table(pa.Table.from_pylist(held, schema))
            held.clear()

        def write(rows: Rows) -> None:
            names = [
                path.encode(errors="backslashreplace").decode() for path in rows.paths
            ]  # parquet has UTF-8 only
            embeddings = [None] * len(names) if rows.embeddings is None else rows.embeddings
            for row in zip(names, rows.labels, rows.probabilities, embeddings, strict=True):
                held.append(dict(zip(kinds, row, strict=True)))
            if len(held) >= ROW_GROUP:
                flush()

        yield write
        if held:
            flush()


def shortest(numbers: np.ndarray) -> list[list[float]]:
    """Returns float32 as the floats whose digits are the fewest that tell it from its neighbours."""
    return numbers.astype(str).astype(float).tolist()  # type: ignore[no-any-return]
