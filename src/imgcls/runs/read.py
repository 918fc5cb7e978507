"""Run directories, read from local files alone, as a table with one row for each run."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.config.check import typed
from imgcls.errors import UserError
from imgcls.runs.run_files import (
    Damaged,
    Status,
    best_row,
    curves,
    direction,
    directions,
    flat,
    read_config,
    read_file,
    test_metrics,
    text_of,
)

FACTS = ("path", "name", "status", "reason", "debug", "overrides")
COSTS = ("seconds", "images_per_second", "parameters")
METRICS = ("best/", "last/", "test/")
OF_THE_TABLE = (
    "path",
    "name",
    "status",
    "reason",
    "debug",
    *COSTS,
)  # keys of a config can't take their places
DEBUG = re.compile(r"^    debug: (?!null$)(.+)$", re.MULTILINE)  # among the choices in .hydra/hydra.yaml
RECORDS = ("config.yaml", "metrics.csv", "status.json")  # a folder with one of these is a run directory


def read_runs(folders: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Returns a row for each run in or below the folders, with these columns, as far as the runs have them:

    - `path`, and `name`, which is the path below the folder
    - `overrides`: what its command line changed
    - `debug`: its choice of `debug=…`, where it has one
    - `status`: finished, failed, stopped, pruned, unfinished (it runs still, or was killed) or damaged;
      and `reason`
    - the config by dotted names (`optimizer.lr`); a group alone (`optimizer`) is what was chosen for it
    - `best/…`, all metrics of the epoch where the run's `optimized_metric` was best; `last/…`, those of the
      last epoch; `test/…`
    - `seconds` from start to end; `images_per_second` of training, the median over epochs; `parameters`

    Its `attrs["better"]` has the direction, "min" or "max", in which each metric is better.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    rows, better = [], dict[str, Any]()
    for given in [folders] if isinstance(folders, str | Path) else folders:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            expected = "one with runs of imgcls train in it"
            raise UserError(f"runs={folder}: there is no such folder; expected {expected}")
        found = list(find_runs(folder))
        if not found:
            raise UserError(f"runs={folder}: no run is in or below it; expected what imgcls train made")
        for path in found:
            name = path.name if path == folder else str(path.relative_to(folder))
            modes = directions(path)
            rows.append({"path": str(path), "name": name, **_row(path, modes)})
            better |= modes or {}
    table = pd.DataFrame(rows).drop_duplicates("path", ignore_index=True)
    known = [name for name in table.columns if name not in (*FACTS, *COSTS) and not name.startswith(METRICS)]
    measured = [name for start in METRICS for name in table.columns if name.startswith(start)]
    table = table.reindex(columns=[*FACTS, *known, *measured, *COSTS])
    table.attrs["better"] = better
    return table


def find_runs(folder: Path) -> Iterator[Path]:
    """Yields the run directories in or below a folder, sorted, with those of jobs that failed at once."""
    for place, folders, files in os.walk(folder):
        hydra = text_of(Path(place, ".hydra", "hydra.yaml")) if ".hydra" in folders else ""
        begun = "config_name: train\n" in hydra and "mode: MULTIRUN\n" in hydra
        if begun or not set(RECORDS).isdisjoint(files):
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_run(path: Path) -> dict[str, Any]:
    """Returns the row of `read_runs` for one run directory."""
    return _row(path, directions(path))


def _row(path: Path, better: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the row of a run directory, whose metrics are better in these directions."""
    debug = DEBUG.search(text_of(path / ".hydra" / "hydra.yaml"))
    row: dict[str, Any] = {"status": "failed", "reason": "it ended before training began"}
    row["debug"] = debug[1] if debug else None
    try:
        if not any((path / name).exists() for name in RECORDS):
            return row
        row |= _status(path)
        config = read_config(path)
        row |= {n: v for n, v in flat(config).items() if n not in OF_THE_TABLE and not n.startswith(METRICS)}
        metric = config.get("optimized_metric")
        row["optimized_metric"] = metric[0] if isinstance(metric, list) else metric
        if (path / "metrics.csv").exists():
            metric = row["optimized_metric"]
            row |= _best_and_last(curves(path), metric, direction(str(metric), better))
        elif row["status"] == "finished" and "csv" in (config.get("logger") or {}):
            raise Damaged("metrics.csv is not there")
        row |= test_metrics(path)
    except (Damaged, OSError) as error:
        row |= {"status": "damaged", "reason": str(error)}
    return row


def _status(path: Path) -> dict[str, Any]:
    """Returns status, reason, seconds and parameters, as far as status.json says them. Raises Damaged."""
    if not (path / "status.json").exists():  # the run is of a version that wrote none
        done = (path / "test" / "metrics.json").exists()
        return {"status": "finished" if done else "unfinished", "reason": "" if done else "no test was made"}
    found: Status = read_file(path / "status.json", lambda text: typed(json.loads(text), Status, ""))
    if found.status == "running":
        reason = "it runs still, or was killed"
        return {"status": "unfinished", "reason": reason, "parameters": found.parameters}
    costs = {"seconds": found.seconds, "parameters": found.parameters}
    return {"status": found.status, "reason": found.error, **costs}


def _best_and_last(table: pd.DataFrame, metric: str | None, mode: str) -> dict[str, float]:
    """Returns the metrics of the best epoch and of the last one, and the median speed."""
    out = {"images_per_second": table["images_per_second"].median()} if "images_per_second" in table else {}
    values = table.to_numpy()
    last = len(table) - 1 if len(table) else None
    for which, row in (("last", last), ("best", best_row(table, metric, mode))):
        if row is not None:
            measured = zip(table, values[row], strict=True)
            out |= {f"{which}/{name}": value for name, value in measured if name != "step" and value == value}
    return out


def written(value: Any) -> str:
    """Returns a value as it is written on a command line."""
    return "null" if value is None or value != value else str(value).removesuffix(".0")


def finished(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """Returns the runs that finished and have the metric `target`."""
    return table[(table["status"] == "finished") & table[target].notna()]
