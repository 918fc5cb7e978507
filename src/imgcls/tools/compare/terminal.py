"""What compare shows on the terminal: tables with as many columns as there is room for, and lines."""

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from imgcls.report.page import plain
from imgcls.runs.read import METRICS
from imgcls.tools.compare.comparison import (
    Comparison,
    beside,
    counted,
    labels,
    side_by_side,
    spread,
    texts,
    troubles,
)

MOST_ROWS = 40


def show(found: Comparison) -> None:
    """Prints the runs, what is wrong with some, the groups, how two runs differ, and what matters."""
    console, table = Console(highlight=False, soft_wrap=True, markup=False), found.table
    console.print(plain(f"{counted(table)}, {found.target}"), style="bold")
    shown = ["name", *found.first(), *found.rest()]
    printed = table.assign(name=[*map(with_its_number, found.names)])[shown].head(MOST_ROWS)
    kept = {"name", found.by, *found.front()}  # hyper-parameters go last
    fit(console, printed, [name for name in shown if name not in kept], "runs.csv", found.target)
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
        first_to_go = ["d", "pairs", "p (Wilcoxon)", beside(found.target)[1], "seconds"]
        fit(console, spread(found.groups), first_to_go, "groups.csv", found.target)
    for note in found.of_groups:
        console.print(plain(note))
    for title, rows in found.pair.items():
        console.print(f"\n{title}: {'differs' if rows else 'the same'}", style="bold")
        if rows:
            console.print(terminal_table(side_by_side(rows, table), wrap=True), soft_wrap=False)
    for line in (*what_matters(found), *found.closing):
        console.print(plain(line))


def with_its_number(name: str) -> str:
    """Returns `sweep/3_lr=0.1` so that its number is seen where the end is cut."""
    sweep, slash, job = name.rpartition("/")
    return f"{sweep[:9]}…/{job}" if slash and len(sweep) > 10 else name


def what_matters(found: Comparison) -> list[str]:
    """Returns a line with the parameters that explain most, if any do."""
    if not found.matters.parts or found.matters.r2 is None:
        return []
    named = [f"{name} {part:.2f}" for name, (part, _) in list(found.matters.parts.items())[:3]]
    r2, low, high = found.matters.r2
    return [f"what matters: {', '.join(named)}, of an out-of-bag R² of {r2:.2f} ({low:.2f} to {high:.2f})"]


def fit(console: Console, frame: pd.DataFrame, first_to_go: list[str], file: str, target: str) -> None:
    """Prints a table with as many columns as there is room for; the last of `first_to_go` goes first."""
    wide, left = Console(width=10_000), list[str]()
    first_to_go = [name for name in first_to_go if name in frame]
    grid = terminal_table(frame, target)
    while first_to_go and Measurement.get(wide, wide.options, grid).maximum > console.width:
        left.append(first_to_go.pop())
        grid = terminal_table(frame.drop(columns=left), target)
    console.print(grid, soft_wrap=False)
    if left:
        console.print(plain(f"no room for {', '.join(left)}: in {file} and on the page"))


def terminal_table(frame: pd.DataFrame, target: str = "", wrap: bool = False) -> Table:
    """Returns a table for the terminal; without `wrap` each row is one line, and the values of the metric
    that runs are compared by have short heads."""
    columns = []
    for name, word in labels(frame.columns).items():
        short = name in (target, *beside(target)) and name.startswith(METRICS) and not wrap
        head = name.partition("/")[0] if short else word
        column = Column(Text(plain(head)), no_wrap=not wrap, max_width=22 if name == "name" else None)
        column.overflow = "fold" if wrap else "ellipsis"
        column.justify = "right" if pd.api.types.is_numeric_dtype(frame[name]) else "left"
        columns.append(column)
    grid = Table(*columns, show_edge=False, pad_edge=False, header_style="bold")
    for row in texts(frame):
        grid.add_row(*map(Text, row))
    return grid
