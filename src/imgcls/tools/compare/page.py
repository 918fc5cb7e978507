"""The page of compare, which needs no other file (page.html)."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.report.page import Grid, render
from imgcls.runs.read import COSTS, METRICS
from imgcls.runs.run_files import Damaged, curves, direction
from imgcls.tools.compare.comparison import (
    Comparison,
    beside,
    counted,
    figure,
    labels,
    side_by_side,
    spread,
    texts,
    troubles,
)

MOST_POINTS = 200_000  # of all curves in the page


def write_page(found: Comparison, path: Path) -> None:
    """Writes the page: all of the data and of the script in one file."""
    table, target = found.table, found.target
    best = table.sort_values(
        target, ascending=direction(target, table.attrs.get("better")) == "min", kind="stable"
    ).iloc[0]
    groups = None if found.groups is None else spread(found.groups).rename(columns={"seconds": "time"})
    render(
        "tools/compare/page.html",
        path,
        found=found,
        title=f"Comparison of {counted(table)}",
        best={"value": figure(target, best[target]), "name": best["name"]},
        groups=None if groups is None else grid(groups),
        troubles=troubles(table),
        differences={title: rows and grid(side_by_side(rows, table)) for title, rows in found.pair.items()},
        data=page_data(found),
    )


def grid(frame: pd.DataFrame) -> Grid:
    """Returns a table for the page; of groups, the columns before their number of runs are words."""
    names = list(frame.columns)
    return Grid(names, list(texts(frame)), names.index("runs") if "runs" in names else len(names))


def page_data(found: Comparison) -> dict[str, Any]:
    """Returns the data of the page's script: columns, rows and curves. What differs comes first, then what
    the table is sorted by, then the rest."""
    table, target = found.table.assign(name=found.names), found.target
    metrics = [name for name in table.columns if name.startswith(METRICS) and table[name].notna().any()]
    metrics.sort(key=lambda name: (name != found.by, name != target))
    kinds = dict.fromkeys(("name", "status"), "fact") | dict.fromkeys(found.differing, "config")
    kinds |= dict.fromkeys(found.front(), "fact") | dict.fromkeys(metrics, "metric")
    kinds |= dict.fromkeys(COSTS, "cost") | dict.fromkeys(found.paths, "config")
    if found.by not in kinds:
        kinds[found.by] = "config"
    hidden = set(metrics) - {target, found.by, *beside(target)}
    hidden |= set() if troubles(table) else {"status"}
    numbers = {name for name in table.select_dtypes("number") if table[name].notna().any()}
    heads = labels(kinds)
    columns = []
    for name, kind in kinds.items():
        better = direction(name, table.attrs.get("better")) if kind == "metric" else None
        facts = {"number": name in numbers, "shown": name not in hidden, "better": better}
        columns.append(
            {"name": name, "label": heads[name], "kind": kind, "log": found.scales.get(name), **facts}
        )
    cells = [[in_json(value, name in numbers) for value in table[name]] for name in kinds]
    rows, metric = list(zip(*cells, strict=True)), target.partition("/")[2]
    lines = [curve(path, len(table)) for path in table["path"]]
    return {"columns": columns, "rows": rows, "target": target, "curve": metric, "curves": lines}


def curve(path: str, runs: int) -> dict[str, list[float | None]] | None:
    """Returns what a run logged in each epoch, with five digits; one of many runs has fewer points."""
    try:
        logged = curves(path).drop(columns="step", errors="ignore")
    except Damaged:
        return None
    step = 1 + len(logged) * logged.shape[1] * runs // MOST_POINTS
    kept = logged.iloc[sorted({*range(0, len(logged), step), len(logged) - 1})]
    return {n: [float(f"{v:.5g}") if math.isfinite(v) else None for v in kept[n]] for n in kept.columns}


def in_json(value: Any, number: bool) -> Any:
    """Returns a value for the page's script: null where it is missing, and a word for infinity."""
    if pd.isna(value):
        return None
    return value if number and math.isfinite(value) else str(value)
