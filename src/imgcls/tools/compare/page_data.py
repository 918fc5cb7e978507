"""The data of compare's page: what its script (script/) draws, as JSON."""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.runs.read import COSTS, METRICS
from imgcls.runs.run_files import Damaged, curves, direction
from imgcls.tools.compare.comparison import Comparison, beside, figure, labels, troubles
from imgcls.tools.compare.table import upwards
from imgcls.tools.compare.tested import confusions, report_links

MOST_POINTS = 200_000  # of all curves in the page
MOST_AXES = 12  # of the parallel coordinates
REPEATS = ("seed", "data.fold")  # what differs between runs of one config
MANY_LEVELS = 30  # words on an axis: more can't be told apart


def page_data(found: Comparison, page: Path) -> dict[str, Any]:
    """Returns the data of the page at `page`: columns, rows, curves, and what belongs to each row."""
    table, target = found.table.assign(name=found.names), found.target
    kinds = columns_of(found)
    heads = labels(kinds)
    numbers = {str(name) for name in table.select_dtypes("number") if table[name].notna().any()}
    cells = [[in_json(value, name in numbers) for value in table[name]] for name in kinds]
    logged = [logged_by(path) for path in table["path"]]
    step = 1 + sum(frame.size for frame in logged if frame is not None) // MOST_POINTS
    columns = [described(name, kind, found, name in numbers) for name, kind in kinds.items()]
    return {
        "columns": [{**column, "label": heads[column["name"]]} for column in columns],
        "rows": list(zip(*cells, strict=True)),
        "target": target,
        "order": {"column": found.by, "up": upwards(table, found.by) != found.reverse},
        "axes": axes(found, kinds, numbers),
        "curve": re.sub("^(best/|last/)|^test/", lambda start: "" if start[1] else "val/", target),
        "curves": [None if frame is None else curve(frame, step) for frame in logged],
        "groups": groups(found),
        "reports": report_links(table["path"], page),
        "confusions": confusions(table["path"]),
    }


def columns_of(found: Comparison) -> dict[str, str]:
    """Returns the names of the columns with their kinds. What the table is sorted by comes after the name,
    then what differs, then the rest."""
    table, target = found.table, found.target
    metrics = [name for name in table.columns if name.startswith(METRICS) and table[name].notna().any()]
    metrics.sort(key=lambda name: (name != found.by, name != target))
    kinds = dict.fromkeys(metrics, "metric") | dict.fromkeys(COSTS, "cost")
    kinds |= dict.fromkeys((*found.differing, *found.paths), "config")
    kinds |= dict.fromkeys(("name", "status", *found.front()), "fact")
    kinds.setdefault(found.by, "config")
    first = ("name", "status", found.by, *found.differing, *found.front(), *metrics, *COSTS)
    return {name: kinds[name] for name in dict.fromkeys((*first, *kinds))}


def described(name: str, kind: str, found: Comparison, number: bool) -> dict[str, Any]:
    """Returns what the script must know of a column."""
    target = found.target
    hidden = kind == "metric" and name not in {target, found.by, *beside(target)}
    hidden |= name == "status" and not troubles(found.table)
    better = direction(name, found.table.attrs.get("better")) if kind == "metric" else None
    facts = {"number": number, "shown": not hidden, "better": better, "log": found.scales.get(name)}
    return {"name": name, "kind": kind, **facts}


def axes(found: Comparison, kinds: dict[str, str], numbers: set[str]) -> list[str]:
    """Returns the columns that are the axes at first: what matters, what differs, seeds and folds, times and
    sizes where there is room, and the metric last. What has one value, or too many words, tells little."""

    def tells(name: str) -> bool:
        values = found.table[name].nunique(dropna=False)
        return values > 1 and (name in numbers or values <= MANY_LEVELS)

    wanted = [*found.matters.parts, *(name for name in found.differing if name not in found.matters.parts)]
    wanted.sort(key=lambda name: name in REPEATS)
    wanted = [*filter(tells, wanted), *(name for name in wanted if not tells(name))]
    wanted += [name for name in ("seconds", "parameters") if name in numbers and tells(name)]
    wanted = [name for name in dict.fromkeys(wanted) if name in kinds and name != found.target]
    return [*wanted[: MOST_AXES - 1], found.target]


def groups(found: Comparison) -> dict[str, Any] | None:
    """Returns of each config that is averaged its name, and for each run the place of its config."""
    if found.groups is None:
        return None
    keys = list(found.groups.columns)[: list(found.groups.columns).index("runs")]
    heads = labels(keys)
    rows = found.groups[keys].itertuples(index=False, name=None)
    names = [", ".join(f"{heads[k]}={figure(k, v)}" for k, v in zip(keys, row, strict=True)) for row in rows]
    return {"names": names, "of": [found.members.get(row) for row in range(len(found.table))]}


def logged_by(path: str) -> pd.DataFrame | None:
    """Returns what a run logged in each epoch; None where that can't be read."""
    try:
        return curves(path)
    except Damaged:
        return None


def curve(logged: pd.DataFrame, step: int) -> dict[str, list[float | None]]:
    """Returns every `step`th row and the last, with five digits; counts are whole."""
    kept = logged.iloc[sorted({*range(0, len(logged), step), len(logged) - 1} - {-1})]
    return {name: [short(name, value) for value in kept[name]] for name in kept.columns}


def short(name: str, value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if name in ("epoch", "step") else float(f"{value:.5g}")


def in_json(value: Any, number: bool) -> Any:
    """Returns a value for the page's script: null where it is missing, and a word for infinity."""
    if pd.isna(value):
        return None
    return value if number and math.isfinite(value) else str(value)
