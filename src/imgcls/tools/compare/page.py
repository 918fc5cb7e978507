"""The page of compare, which needs no other file: page.html, page.css and script/, filled with the data of
page_data.py."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.report.page import Grid, render
from imgcls.runs.run_files import direction
from imgcls.tools.compare.comparison import Comparison, counted, figure, side_by_side, spread, texts, troubles
from imgcls.tools.compare.page_data import page_data
from imgcls.tools.compare.tested import disagreement

DECIMALS = re.compile(r"-?\d+\.\d{5,}(e-?\d+)?")


def write_page(found: Comparison, path: Path) -> None:
    """Writes the page: all of the data and of the script in one file."""
    table, target = found.table, found.target
    best = table.sort_values(
        target, ascending=direction(target, table.attrs.get("better")) == "min", kind="stable"
    ).iloc[0]
    groups = None if found.groups is None else shortened(spread(found.groups))
    render(
        "tools/compare/page.html",
        path,
        found=found,
        title=f"Comparison of {counted(table)}",
        best={"value": figure(target, best[target]), "name": best["name"]},
        groups=None if groups is None else grid(groups),
        troubles=troubles(table),
        differences={title: rows and grid(side_by_side(rows, table)) for title, rows in found.pair.items()},
        data=page_data(found, path) | {"two": two_tests(found)},
    )


def two_tests(found: Comparison) -> dict[str, Any] | None:
    """Returns where the tests of the two runs disagree; of more or fewer runs nothing."""
    if len(found.table) != 2:
        return None
    one, other = found.table["path"]
    return asdict(disagreement((Path(one), Path(other)), (found.names[0], found.names[1])))


def shortened(groups: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups with four digits of the numbers in their keys, where these still tell them apart."""
    out = groups.rename(columns={"seconds": "time"})
    for name in list(out.columns)[: list(out.columns).index("runs")]:
        short = out[name].map(lambda text: f"{float(text):.4g}" if DECIMALS.fullmatch(str(text)) else text)
        if short.nunique() == out[name].nunique():
            out[name] = short
    return out


def grid(frame: pd.DataFrame) -> Grid:
    """Returns a table for the page; of groups, the columns before their number of runs are words."""
    names = list(frame.columns)
    return Grid(names, list(texts(frame)), names.index("runs") if "runs" in names else len(names))
