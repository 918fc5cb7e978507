"""Lets each row be logged once: a run that was killed goes on from its last checkpoint, and comes to some
rows (a step, and names) again, with the same values."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

LogMetrics = Callable[[Mapping[str, float], int | None], None]


def once(
    log_metrics: LogMetrics,
    path: Path,
    place: Callable[[], int] = lambda: 0,
    has_arrived: Callable[[int], bool] = lambda place: True,
) -> LogMetrics:
    """Returns a function that passes on the rows that are new.

    Args:
        path: a file that names the rows that were passed on, each with its place.
        place: of the next row in the history.
        has_arrived: tells whether the row at a place of an earlier process was kept, at the beginning.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    places = {row: int(where) for where, _, row in (line.partition(" ") for line in lines)}
    known = {row for row, where in places.items() if has_arrived(where)}

    def log_new(metrics: Mapping[str, float], step: int | None = None) -> None:
        row = f"{step} {short_hash(sorted(metrics))}"
        if step is None or row not in known:
            where = place()
            log_metrics(metrics, step)
            known.add(row)
            with suppress(OSError), path.open("a") as file:
                file.write(f"{where} {row}\n")

    return log_new


def short_hash(names: list[str]) -> str:
    return hashlib.blake2b("\n".join(names).encode(), digest_size=4).hexdigest()
