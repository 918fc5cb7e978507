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
    """Predictions for N images: paths, and for each image labels with their probabilities, the best first; of
    a task without labels the network's outputs alone. `embeddings (N, D)` are there if asked for."""

    paths: list[str]
    labels: list[list[str]] | None
    numbers: list[np.ndarray]
    embeddings: np.ndarray | None
    several: bool = False  # whether images have different numbers of labels


Write = Callable[[Rows], None]


def writer(path: Path) -> contextlib.AbstractContextManager[Write]:
    """Returns a context with the function that writes a batch, in the format of the path's ending."""
    if path.suffix == ".parquet":
        return parquet_writer(path)
    return csv_writer(path) if path.suffix == ".csv" else jsonl_writer(path)


@contextlib.contextmanager
def csv_writer(path: Path) -> Iterator[Write]:
    """Columns: path, label_1, probability_1, …, or output_1, …, then embedding_0, …; the header comes with
    the first batch. Where images have different numbers of labels: path, labels and probabilities, each
    divided by `|`."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)

        def write(rows: Rows) -> None:
            ranks = range(1, 1 + len(rows.numbers[0]))
            words = ("output",) if rows.labels is None else ("label", "probability")
            head = [f"{word}_{rank}" for rank in ranks for word in words]
            size = 0 if rows.embeddings is None else rows.embeddings.shape[1]
            if not file.tell():
                head = ["labels", "probabilities"] if rows.several else head
                table.writerow(["path", *head, *(f"embedding_{i}" for i in range(size))])
            for path, labels, numbers, embedding in cells(rows):
                if rows.several:
                    found: list[Any] = ["|".join(labels), "|".join(map(str, numbers))]
                elif rows.labels is None:
                    found = numbers
                else:
                    found = [cell for pair in zip(labels, numbers, strict=True) for cell in pair]
                table.writerow([path, *found, *embedding])

        yield write


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Write]:
    """An object a line: path, labels and probabilities, or outputs; embedding."""
    with path.open("w", encoding="utf-8") as file:

        def write(rows: Rows) -> None:
            for path, labels, numbers, embedding in cells(rows):
                row: dict[str, Any] = {"path": path}
                labelled = rows.labels is not None
                row |= {"labels": labels, "probabilities": numbers} if labelled else {"outputs": numbers}
                file.write(json.dumps(row | {"embedding": embedding} if embedding else row) + "\n")

        yield write


@contextlib.contextmanager
def parquet_writer(path: Path) -> Iterator[Write]:
    """Columns: path, labels and probabilities, or outputs; embedding; all but the first are lists."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    numbers, words, held = pa.list_(pa.float32()), pa.list_(pa.string()), list[dict[str, Any]]()
    with contextlib.ExitStack() as stack:
        file: Any = None

        def write(rows: Rows) -> None:
            nonlocal file
            kinds = {"path": pa.string()}
            labelled = {"labels": words, "probabilities": numbers}
            kinds |= {"outputs": numbers} if rows.labels is None else labelled
            kinds |= {} if rows.embeddings is None else {"embedding": numbers}
            file = file or stack.enter_context(ParquetWriter(path, pa.schema(list(kinds.items()))))
            names = [path.encode(errors="backslashreplace").decode() for path in rows.paths]  # UTF-8 only
            columns = [names, rows.labels, rows.numbers, rows.embeddings]
            for row in zip(*(column for column in columns if column is not None), strict=True):
                held.append(dict(zip(kinds, row, strict=True)))
            if len(held) >= ROW_GROUP:
                flush()

        def flush() -> None:
            file.write_table(pa.Table.from_pylist(held, file.schema))
            held.clear()

        yield write
        if held:
            flush()


def cells(rows: Rows) -> Iterator[tuple[str, list[str], list[float], list[float]]]:
    """Yields path, labels, numbers and embedding (labels and embedding may be empty) of each image."""
    labels = [[]] * len(rows.paths) if rows.labels is None else rows.labels
    embeddings = [[]] * len(rows.paths) if rows.embeddings is None else shortest(rows.embeddings)
    return zip(rows.paths, labels, map(shortest, rows.numbers), embeddings, strict=True)


def shortest(numbers: np.ndarray) -> Any:
    """Returns float32 as the floats whose digits are the fewest that tell it from its neighbours."""
    return numbers.astype(str).astype(float).tolist()
