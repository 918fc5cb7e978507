"""What compare shows: a table on the terminal, and a page that needs no other file (page.html)."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from imgcls.report.page import Grid, plain, render
from imgcls.runs.read import COSTS, METRICS
from imgcls.runs.run_files import Damaged, curves, direction

MOST_ROWS = 40  # on the terminal
MOST_POINTS = 200_000  # of all curves in the page


@dataclass(frozen=True)
class Comparison:
    """The runs, config values that differ, the metric, groups, how two runs differ, and lines to show."""

    table: pd.DataFrame
    differing: list[str]
    target: str
    groups: pd.DataFrame | None
    pair: dict[str, list[tuple[str, Any, Any]]]
    notes: list[str]


def figure(name: str, value: Any) -> str:
    """Returns a value as a person reads it."""
    if pd.isna(value):
        return ""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isinf(value):
        return plain(str(value))
    if name.startswith("seconds"):
        hours, minutes, seconds = value // 3600, value // 60 % 60, value % 60
        return f"{value:.1f} s" if value < 100 else f"{hours:.0f}:{minutes:02.0f}:{seconds:02.0f}"
    if name in ("parameters", "images_per_second"):
        return f"{value:,.0f}"
    return f"{value:.4f}" if "/" in name and abs(value) < 1e3 else f"{value:.4g}"


def texts(frame: pd.DataFrame) -> Iterator[list[str]]:
    """Yields the rows of a table as a person reads them."""
    for row in frame.itertuples(index=False, name=None):
        yield [figure(name, value) for name, value in zip(frame.columns, row, strict=True)]


def labels(names: Iterable[str]) -> dict[str, str]:
    """Returns the heads of columns: the last word of a dotted name where no other name has the same."""
    words = {name: {"seconds": "time", "images_per_second": "images/s"}.get(name, name) for name in names}
    last = {name: word.rpartition(".")[2] for name, word in words.items()}
    count = Counter(last.values())
    return {name: last[name] if count[last[name]] == 1 else word for name, word in words.items()}


def beside(target: str) -> tuple[str, str]:
    """Returns the last value and the test's of the metric that runs are compared by."""
    return target.replace("best/", "last/", 1), f"test/{target.rpartition('/')[2]}"


def show(found: Comparison) -> None:
    """Prints the runs, what is wrong with some, the groups, and how two runs differ."""
    console, table = Console(highlight=False, soft_wrap=True, markup=False), found.table
    measured = [n for n in dict.fromkeys((found.target, *beside(found.target), *COSTS)) if n in table]
    console.print(plain(f"{counted(table)}, {found.target}"), style="bold")
    printed = table.head(MOST_ROWS)[["name", *found.differing, *measured]]
    printed = printed.assign(name=printed["name"].map(with_its_number))
    fit(console, printed, [*found.differing, "parameters", "images_per_second"], "runs.csv")
    if len(table) > MOST_ROWS:
        console.print(f"{len(table) - MOST_ROWS:,} more runs: in runs.csv and on the page")
    wrong = troubles(table)
    for name, kind, reason in wrong[:10]:
        console.print(plain(f"{kind}: {name}" + (f": {reason}" if reason else "")))
    if len(wrong) > 10:
        more = f"{len(wrong) - 10:,} more did not finish or are damaged"
        console.print(f"{more}: where=status!=finished names them")
    for note in found.notes:
        console.print(plain(note))
    if found.groups is not None:
        console.print("\nmean ± standard deviation", style="bold")
        first_to_go = [beside(found.target)[1], "p (Wilcoxon)", "pairs", "seconds"]
        fit(console, spread(found.groups), first_to_go, "groups.csv")
    for title, rows in found.pair.items():
        console.print(f"\n{title}: {'differs' if rows else 'the same'}", style="bold")
        if rows:
            console.print(terminal_table(side_by_side(rows, table), wrap=True), soft_wrap=False)


def with_its_number(name: str) -> str:
    """Returns `sweep/3_lr=0.1` so that its number is seen where the end is cut."""
    sweep, slash, job = name.rpartition("/")
    return f"{sweep[:9]}…/{job}" if slash and len(sweep) > 10 else name


def fit(console: Console, frame: pd.DataFrame, first_to_go: list[str], file: str) -> None:
    """Prints a table with as many columns as there is room for; the last of `first_to_go` goes first."""
    wide, left = Console(width=10_000), list[str]()
    first_to_go = [name for name in first_to_go if name in frame]
    grid = terminal_table(frame)
    while first_to_go and Measurement.get(wide, wide.options, grid).maximum > console.width:
        left.append(first_to_go.pop())
        grid = terminal_table(frame.drop(columns=left))
    console.print(grid, soft_wrap=False)
    if left:
        console.print(plain(f"no room for {', '.join(left)}: in {file} and on the page"))


def terminal_table(frame: pd.DataFrame, wrap: bool = False) -> Table:
    """Returns a table for the terminal; without `wrap` each row is one line, and metrics have short heads."""
    columns = []
    for name, word in labels(frame.columns).items():
        head = name if wrap else name.partition("/")[0] if name.startswith(METRICS) else word
        column = Column(Text(plain(head)), no_wrap=not wrap, max_width=22 if name == "name" else None)
        column.overflow = "fold" if wrap else "ellipsis"
        column.justify = "right" if pd.api.types.is_numeric_dtype(frame[name]) else "left"
        columns.append(column)
    grid = Table(*columns, show_edge=False, pad_edge=False, header_style="bold")
    for row in texts(frame):
        grid.add_row(*map(Text, row))
    return grid


def counted(table: pd.DataFrame) -> str:
    """Returns the number of runs in words."""
    return f"{len(table):,} run{'s' if len(table) > 1 else ''}"


def troubles(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Returns name, status and reason of the runs that did not finish or are damaged."""
    wrong = table[table["status"] != "finished"]
    return list(wrong[["name", "status", "reason"]].itertuples(index=False, name=None))


def spread(groups: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups with `mean ± standard deviation` and `difference ± 95%` as one text each."""
    pairs = {n: n.replace(" mean", " std") for n in groups.columns if n.endswith(" mean")}
    heads = {name: name.removesuffix(" mean") for name in pairs}
    if "95%" in groups:
        pairs["difference"], heads["difference"] = "95%", "difference ± 95%"
    out = groups.drop(columns=list(pairs.values()))
    for name, width in pairs.items():
        kind = "/" if name == "difference" else heads[name]
        values, widths = ([figure(kind, value) for value in groups[n]] for n in (name, width))
        out[name] = [f"{v} ± {w}" if w else v for v, w in zip(values, widths, strict=True)]
    return out.rename(columns=heads)


def side_by_side(rows: list[tuple[str, Any, Any]], table: pd.DataFrame) -> pd.DataFrame:
    """Returns the differences of two runs as a table of text."""
    return pd.DataFrame(rows, columns=["", *table["name"]]).map(lambda value: figure("", value))


def write_page(found: Comparison, shares: dict[str, float], why: str, path: Path) -> None:
    """Writes the page: all of the data and of the script in one file."""
    table, target = found.table, found.target
    best = table.sort_values(
        target, ascending=direction(target, table.attrs.get("better")) == "min", kind="stable"
    ).iloc[0]
    groups = None if found.groups is None else spread(found.groups).rename(columns={"seconds": "time"})
    words = {"title": f"Comparison of {counted(table)}", "target": target, "notes": found.notes, "why": why}
    facts = {"best": {"value": figure(target, best[target]), "name": best["name"]}, "shares": shares}
    tables = {"groups": None if groups is None else grid(groups), "troubles": troubles(table)}
    differences = {title: rows and grid(side_by_side(rows, table)) for title, rows in found.pair.items()}
    data = page_data(table, found.differing, target)
    render("tools/compare/page.html", path, differences=differences, data=data, **words, **facts, **tables)


def grid(frame: pd.DataFrame) -> Grid:
    """Returns a table for the page; of groups, the columns before their number of runs are words."""
    names = list(frame.columns)
    return Grid(names, list(texts(frame)), names.index("runs") if "runs" in names else len(names))


def page_data(table: pd.DataFrame, differing: list[str], target: str) -> dict[str, Any]:
    """Returns the data of the page's script: columns, rows and curves."""
    metrics = [name for name in table.columns if name.startswith(METRICS) and table[name].notna().any()]
    metrics.sort(key=lambda name: name != target)
    kinds = dict.fromkeys(("name", "status"), "fact") | dict.fromkeys(differing, "config")
    kinds |= dict.fromkeys(metrics, "metric") | dict.fromkeys(COSTS, "cost")
    hidden = set(metrics) - {target, *beside(target)} | (set() if troubles(table) else {"status"})
    numbers = {name for name in table.select_dtypes("number") if table[name].notna().any()}
    heads = labels(kinds)
    columns = []
    for name, kind in kinds.items():
        better = direction(name, table.attrs.get("better")) if kind == "metric" else None
        facts = {"number": name in numbers, "shown": name not in hidden, "better": better}
        columns.append({"name": name, "label": heads[name], "kind": kind, **facts})
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
