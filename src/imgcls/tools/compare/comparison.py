"""What a comparison found, for the terminal and the page: the runs, what is shown of them, and how a value is
written."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from imgcls.report.page import plain
from imgcls.tools.compare.importance import Importance

FRONT = "Pareto"  # the column that says which runs are on the front


@dataclass(frozen=True)
class Comparison:
    """The runs, and a short name for each; config values that differ, and those that are paths; the metric
    they are compared by, and the column they are sorted by; groups, how two runs differ, what matters, and
    lines to show, on the runs, on the groups, and at the end. `scales` says of keys that a sweep searched
    whether it did so on a logarithmic scale;
    `reverse`, whether the table is sorted the worst first; `members`, of which group each run counts for,
    where it does."""

    table: pd.DataFrame
    names: list[str]
    differing: list[str]
    paths: list[str]
    target: str
    by: str
    groups: pd.DataFrame | None = None
    pair: dict[str, list[tuple[str, Any, Any]]] = field(default_factory=dict)
    matters: Importance = field(default_factory=Importance)
    notes: list[str] = field(default_factory=list)
    of_groups: list[str] = field(default_factory=list)
    closing: list[str] = field(default_factory=list)
    scales: dict[str, bool] = field(default_factory=dict)
    reverse: bool = False
    members: dict[int, int] = field(default_factory=dict)

    def first(self) -> list[str]:
        """Returns the columns that come first: what differs and is no path, and what sorts the table."""
        return list(dict.fromkeys([*self.differing, *self.front(), self.by]))

    def rest(self) -> list[str]:
        """Returns the columns that come then: the metric's other values, costs, and paths."""
        costs = ("seconds", "parameters", "images_per_second")  # the last finds no room first
        wanted = (self.target, *beside(self.target), *costs, *self.paths)
        return [n for n in dict.fromkeys(wanted) if n in self.table and n not in self.first()]

    def front(self) -> list[str]:
        return [FRONT] if FRONT in self.table else []


def beside(target: str) -> tuple[str, str]:
    """Returns the last value and the test's of the metric that runs are compared by."""
    return target.replace("best/", "last/", 1), f"test/{target.rpartition('/')[2]}"


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
    if "/" in name and abs(value) < 1e3 and not name.endswith("/epoch"):
        return f"{value:.4f}"
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


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


def counted(table: pd.DataFrame) -> str:
    """Returns the number of runs in words."""
    return f"{len(table):,} run{'s' if len(table) > 1 else ''}"


def troubles(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Returns name, status and reason of the runs that did not finish or are damaged."""
    wrong = table[table["status"] != "finished"]
    return list(wrong[["name", "status", "reason"]].itertuples(index=False, name=None))


def spread(groups: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups with `mean ± standard deviation` and `difference ± 95%` as one text each; of the
    tests, what is corrected for their number."""
    pairs = {n: n.replace(" mean", " std") for n in groups.columns if n.endswith(" mean")}
    heads = {name: name.removesuffix(" mean") for name in pairs}
    if "95% of all" in groups:
        pairs["difference"], heads["difference"] = "95% of all", "difference ± 95%"
    uncorrected = [name for name in ("95%", "p (t)", "p (Wilcoxon)") if name in groups]
    out = groups.drop(columns=[*pairs.values(), *uncorrected])
    for name, width in pairs.items():
        kind = "/" if name == "difference" else heads[name]
        values, widths = ([figure(kind, value) for value in groups[n]] for n in (name, width))
        out[name] = [f"{v} ± {w}" if w else v for v, w in zip(values, widths, strict=True)]
    heads |= {f"p ({test}, Holm)": f"p ({test})" for test in ("t", "Wilcoxon")}
    return out.rename(columns=heads)


def side_by_side(rows: list[tuple[str, Any, Any]], table: pd.DataFrame) -> pd.DataFrame:
    """Returns the differences of two runs as a table of text."""
    return pd.DataFrame(rows, columns=["", *table["name"]]).map(lambda value: figure("", value))
