"""What compare shows: a table on the terminal, and a page that needs nothing beside itself (page.html)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from imgcls.config.metrics import direction
from imgcls.report.page import Grid, plain, render
from imgcls.runs.read import COSTS, METRICS, Damaged, curves
from imgcls.tools.compare.importance import importances

MOST_ROWS = 40  # on the terminal
MOST_POINTS = 200_000  # of all curves in the page
Differences = dict[str, list[tuple[str, Any, Any]]]


@dataclass(frozen=True)
class Comparison:
    """What is shown: the runs, which config values differ, the metric, and of groups and two runs what was asked for."""

    table: pd.DataFrame
    differing: list[str]
    target: str
    groups: pd.DataFrame | None
    pair: Differences
    notes: list[str]


def figure(name: str, value: Any) -> str:
    """Returns a value as a person reads it."""
    if value is None or value is pd.NA or value != value:
        return ""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isinf(value):
        return plain(str(value))
    if name.startswith("seconds"):
        return (
            f"{value:.1f} s"
            if value < 100
            else f"{value // 3600:.0f}:{value // 60 % 60:02.0f}:{value % 60:02.0f}"
        )
    if name in ("parameters", "images_per_second"):
        return f"{value:,.0f}"
    return f"{value:.4f}" if "/" in name and abs(value) < 1e3 else f"{value:.4g}"


def labels(names: Iterable[str]) -> dict[str, str]:
    """Returns what stands above the columns: the last word of a dotted name where no other has the same."""
    words = {name: {"seconds": "time", "images_per_second": "images/s"}.get(name, name) for name in names}
    last = [word.rpartition(".")[2] for word in words.values()]
    return {
        n: word.rpartition(".")[2] if last.count(word.rpartition(".")[2]) == 1 else word
        for n, word in words.items()
    }


def beside(target: str) -> tuple[str, str]:
    """Returns the last value and the test's of the metric that runs are compared by."""
    return target.replace("best/", "last/", 1), f"test/{target.rpartition('/')[2]}"


def show(found: Comparison) -> None:
    """Prints the runs, what is wrong with some, the groups, and how two runs differ."""
    console, table, target = Console(highlight=False, soft_wrap=True, markup=False), found.table, found.target
    measured = [n for n in dict.fromkeys((target, *beside(target), *COSTS)) if n in table]
    console.print(plain(f"{counted(table)}, {target}"), style="bold")
    printed = table.head(MOST_ROWS)[["name", *found.differing, *measured]]
    printed = printed.assign(name=printed["name"].map(with_its_number))
    fit(console, printed, [*found.differing, "parameters", "images_per_second"], "runs.csv")
    if len(table) > MOST_ROWS:
        console.print(f"{len(table) - MOST_ROWS:,} more runs: in runs.csv and on the page")
    wrong = troubles(table)
    for name, kind, reason in wrong[:10]:
        console.print(plain(f"{kind}: {name}" + (f": {reason}" if reason else "")))
    if len(wrong) > 10:
        console.print(
            f"{len(wrong) - 10:,} more did not finish or are damaged: where=status!=finished names them"
        )
    for note in found.notes:
        console.print(plain(note))
    if found.groups is not None:
        console.print("\nmean ± standard deviation", style="bold")
        fit(
            console,
            spread(found.groups),
            [beside(target)[1], "p (Wilcoxon)", "pairs", "seconds"],
            "groups.csv",
        )
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
    while True:
        grid = terminal_table(frame.drop(columns=left))
        if not first_to_go or Measurement.get(wide, wide.options, grid).maximum <= console.width:
            break
        left.append(first_to_go.pop())
    console.print(grid, soft_wrap=False)
    if left:
        console.print(plain(f"no room for {', '.join(left)}: in {file} and on the page"))


def terminal_table(frame: pd.DataFrame, wrap: bool = False) -> Table:
    grid = Table(show_edge=False, pad_edge=False, header_style="bold")
    for name, word in labels(frame.columns).items():
        number = pd.api.types.is_numeric_dtype(frame[name])
        short = name if wrap else name.partition("/")[0] if name.startswith(METRICS) else word
        grid.add_column(Text(plain(short)), justify="right" if number else "left", no_wrap=not wrap,
                        overflow="fold" if wrap else "ellipsis", max_width=22 if name == "name" else None)  # fmt: skip
    for row in frame.itertuples(index=False):
        grid.add_row(*(Text(figure(name, value)) for name, value in zip(frame.columns, row, strict=True)))
    return grid


def counted(table: pd.DataFrame) -> str:
    return f"{len(table):,} run{'s' if len(table) > 1 else ''}"


def troubles(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Returns name, status and reason of the runs that did not finish or are damaged."""
    wrong = table[table["status"] != "finished"]
    return list(wrong[["name", "status", "reason"]].itertuples(index=False, name=None))


def spread(groups: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups with mean and standard deviation, and the difference and its interval, as one text each."""
    out = groups.drop(columns=[n for n in groups.columns if n.endswith(" std") or n == "95%"])
    for name in [n for n in groups.columns if n.endswith(" mean")]:
        rows = zip(groups[name], groups[f"{name[:-5]} std"], strict=True)
        out[name] = [plus_minus(name, *row) for row in rows]
    if "95%" in groups:
        rows = zip(groups["difference"], groups["95%"], strict=True)
        out["difference"] = [plus_minus("/", *row) for row in rows]
        out = out.rename(columns={"difference": "difference ± 95%"})
    return out.rename(columns=lambda name: name.removesuffix(" mean"))


def side_by_side(rows: list[tuple[str, Any, Any]], table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["", *table["name"]]).map(lambda value: figure("", value))


def plus_minus(name: str, value: float, spread: float) -> str:
    return figure(name, value) + (f" ± {figure(name, spread)}" if spread == spread else "")


def write_page(found: Comparison, path: Path) -> None:
    """Writes the page: all of the data and of the script in one file."""
    table, target, groups = found.table, found.target, found.groups
    shares, why = importances(table, found.differing, target)
    place: Any = table[target].idxmin() if direction(target) == "min" else table[target].idxmax()
    best = table.loc[place]
    pair = {title: rows and grid(side_by_side(rows, table)) for title, rows in found.pair.items()}
    render(
        "tools/compare/page.html", path, title=f"Comparison of {counted(table)}", target=target,
        best={"value": figure(target, best[target]), "name": best["name"]},
        notes=found.notes, troubles=troubles(table), shares=shares, why=why, differences=pair,
        groups=None if groups is None else grid(spread(groups).rename(columns={"seconds": "time"})),
        data=page_data(table, found.differing, target),
    )  # fmt: skip


def grid(frame: pd.DataFrame) -> Grid:
    """Returns a table for the page; of groups, words are what comes before their number of runs."""
    names = [str(name) for name in frame.columns]
    rows = [
        [figure(name, v) for name, v in zip(names, row, strict=True)] for row in frame.itertuples(index=False)
    ]
    return Grid(names, rows, names.index("runs") if "runs" in names else len(names))


def page_data(table: pd.DataFrame, differing: list[str], target: str) -> dict[str, Any]:
    """Returns what the page's script is to know: columns, rows and curves."""
    open_at_first = {target, *beside(target)}
    metrics = [name for name in table.columns if name.startswith(METRICS) and table[name].notna().any()]
    metrics.sort(key=lambda name: name != target)
    facts = ["name", "status"]
    columns: list[dict[str, Any]] = []
    above = labels([*facts, *differing, *metrics, *COSTS])
    for name in above:
        kind = (
            "fact"
            if name in facts
            else "config"
            if name in differing
            else "metric"
            if "/" in name
            else "cost"
        )
        number = (
            pd.api.types.is_numeric_dtype(table[name])
            and table[name].dtype != bool
            and table[name].notna().any()
        )
        columns.append({"name": name, "label": above[name], "kind": kind, "number": bool(number),
                        "shown": name in open_at_first if kind == "metric" else name != "status" or bool(troubles(table)),
                        "better": direction(name) if kind == "metric" else None})  # fmt: skip
    shown = table[[column["name"] for column in columns]]
    texts = [c["name"] for c in columns if not c["number"]]
    shown = shown.assign(
        **{n: shown[n].map(lambda v: None if v is None or v != v else str(v)) for n in texts}
    )
    rows = [[in_json(value) for value in row] for row in shown.astype(object).to_numpy().tolist()]
    return {"columns": columns, "rows": rows, "target": target, "curve": target.partition("/")[2],
            "curves": [curve(path, len(table)) for path in table["path"]]}  # fmt: skip


def curve(path: str, runs: int) -> dict[str, list[float | None]] | None:
    """Returns what a run logged by epoch, with four digits, and no more points than a page of so many runs can have."""
    try:
        logged = curves(path).drop(columns="step", errors="ignore")
    except Damaged:
        return None
    step = 1 + len(logged) * logged.shape[1] * runs // MOST_POINTS
    kept = logged.iloc[sorted({*range(0, len(logged), step), len(logged) - 1})]
    return {
        name: [float(f"{v:.5g}") if math.isfinite(v) else None for v in kept[name]] for name in kept.columns
    }


def in_json(value: Any) -> Any:
    """Returns a value for the page's script: JSON has no infinity, which is a word there, and no missing number."""
    if value is None or value is pd.NA or value != value:
        return None
    return str(value) if isinstance(value, float) and math.isinf(value) else value
