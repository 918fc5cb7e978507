"""The table of compare: which runs are in it, in which order, and which of their values are shown first."""

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from imgcls.errors import UserError
from imgcls.runs.read import COSTS, FACTS, METRICS, finished
from imgcls.runs.run_files import direction

PATH = re.compile(r"(~|\.{0,2})/")
OF_FOLDERS = ("imagefolder", "packed", "streaming")  # data whose name is that of its folder


def left_out(table: pd.DataFrame, failed: bool, debug: bool) -> tuple[pd.DataFrame, list[str]]:
    """Returns the runs without those that tell nothing, and lines with their number: runs that failed before
    their first epoch, unless `failed`, and those of `debug=…`, unless `debug`. Raises UserError: there are
    no others."""
    epochs = [name for name in table.columns if name.startswith(("last/", "best/", "test/"))]
    dead = (table["status"] == "failed") & table[epochs].isna().all(axis=1)
    kinds = [(~dead | failed, "failed before the first epoch", "failed=true"),
             (table["debug"].isna() | debug, "of debug=…", "debug=true")]  # fmt: skip
    notes = []
    for kept, words, key in kinds:
        kept = kept.reindex(table.index)
        if count := int((~kept).sum()):
            notes.append(f"{count:,} run{'s' if count > 1 else ''} {words} left out; {key} shows them")
        if not kept.any():
            raise UserError(f"no run is left to compare: {'; '.join(notes)}")
        table = table[kept]
    return table, notes


def named_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs with the network's own name as backbone where a library has many (`backbone=timm`),
    and with the name of the set as data where it is one of many (`data=imagefolder`)."""
    out, known = table.copy(), pd.Series(None, table.index, dtype=object)
    if "backbone.name" in table and "backbone" in table:
        out["backbone"] = table["backbone.name"].combine_first(table["backbone"])
    for name in ("data.name", "data.file"):
        if name in table:
            known = known.combine_first(table[name].astype(object))
    if "data.root" in table and "data" in table:
        known = known.combine_first(table["data.root"].astype(object).where(table["data"].isin(OF_FOLDERS)))
    if "data" in table and known.nunique() > 1:
        last = known.map(lambda path: PurePath(str(path)).name, na_action="ignore")
        out["data"] = table["data"].where(last.isna(), table["data"] + " " + last.astype(str))
    return out


def optimised(table: pd.DataFrame) -> str:
    """Returns the column of the metric that most of the runs optimised."""
    found = [name for name in table.columns if name.startswith("best/")]
    if not found:
        raise UserError("no run has a whole epoch in its metrics.csv: there is nothing to compare")
    wanted = {f"best/{metric}" for metric in table["optimized_metric"].mode()}
    return next((name for name in found if name in wanted), found[-1])


def ordered(table: pd.DataFrame, by: str, reverse: bool = False) -> pd.DataFrame:
    """Returns the runs by a column: metrics best first, other values from small to large, or the reverse;
    those of each data set together."""
    values = table[by]
    if values.dtype == object:  # numbers among words
        values = values.astype(str).where(values.notna())
    out = table.loc[values.sort_values(ascending=upwards(table, by) != reverse, kind="stable").index]
    if "data" in out and out["data"].nunique() > 1:
        out = out.sort_values("data", kind="stable")
    return out.reset_index(drop=True)


def upwards(table: pd.DataFrame, by: str) -> bool:
    """Says whether a column goes from small to large where the best, or the first, comes first."""
    return "/" not in by or direction(by, table.attrs.get("better")) == "min"


def differing_config(table: pd.DataFrame) -> list[str]:
    """Returns the config's names of which runs have different values, those of the command line first. A
    value that comes with another's choice (`backbone.depth` with `backbone`) is left out, unless a command
    line set it."""
    known = table[table["optimized_metric"].notna()]
    config = known.drop(columns=[*FACTS, *COSTS, "optimized_metric"])
    no_config = (*METRICS, "logger", "callbacks.pruning")
    found = [n for n in config.columns if not n.startswith(no_config) and config[n].nunique(dropna=False) > 1]
    words = " ".join(known["overrides"].dropna().astype(str).unique())
    given = [name for name in found if re.search(rf"(?:^|[ ,+]){re.escape(name)}=", words)]
    return given + [n for n in found if n not in given and not comes_with_choice(config, n, found)]


def comes_with_choice(config: pd.DataFrame, name: str, differing: list[str]) -> bool:
    """Says whether each choice of a group above a name, such as `backbone`, has one value of it alone."""
    above = [group for group in differing if name.startswith(f"{group}.")]
    counts = (config.groupby(group, dropna=False)[name].nunique(dropna=False) for group in above)
    return any(count.max() == 1 for count in counts)


def is_path(values: "pd.Series[Any]") -> bool:
    """Says whether a column has places of files, which two machines call by different names."""
    return any(isinstance(value, str) and PATH.match(value) for value in values.unique())


def short_names(names: Iterable[str]) -> list[str]:
    """Returns the names of runs without what all of them share: the folders at their beginning, and the
    overrides in their last part. Two runs never get one name."""
    names = list(names)
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts) and len(names) > 1:
        shared += 1
    heads = ["/".join([*own[shared:-1], ""]) for own in parts]
    words = [own[-1].partition("_") for own in parts]
    if len(names) < 2 or not all(number.isdigit() and rest for number, _, rest in words):
        return [head + own[-1] for head, own in zip(heads, parts, strict=True)]
    overrides = [re.split(r",(?=[^,=]+=)", rest) for _, _, rest in words]
    common = set(overrides[0]).intersection(*overrides[1:])
    lasts = [",".join(word for word in own if word not in common) for own in overrides]
    numbered = [f"{number}_{last}".rstrip("_") for (number, _, _), last in zip(words, lasts, strict=True)]
    out = [head + name for head, name in zip(heads, numbered, strict=True)]
    return out if len(set(out)) == len(set(names)) else names


def pareto_front(table: pd.DataFrame, objectives: dict[str, str]) -> "pd.Series[bool]":
    """Returns which finished runs are on the Pareto front of the columns in `objectives` ("min" or "max"): no
    other is as good in all of them and better in one."""
    done = table
    for name in objectives:
        done = finished(done, name)
    signs = [1 if mode == "max" else -1 for mode in objectives.values()]
    values = done[list(objectives)].to_numpy(float) * signs
    beaten = [bool(((values >= own).all(1) & (values > own).any(1)).any()) for own in values]
    front = pd.Series(False, table.index)
    front.loc[done.index] = ~np.array(beaten, bool)
    return front
