"""imgcls compare: shows runs side by side, from their directories alone: a table, a CSV file and a page."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from imgcls.config.paths import shown
from imgcls.errors import UserError
from imgcls.runs.read import read_runs
from imgcls.runs.run_files import Damaged, differences
from imgcls.tools.compare.comparison import FRONT, Comparison
from imgcls.tools.compare.conditions import column, where
from imgcls.tools.compare.importance import importance
from imgcls.tools.compare.page import write_page
from imgcls.tools.compare.statistics import grouped, numbered, once_each
from imgcls.tools.compare.sweep_files import searched
from imgcls.tools.compare.table import (
    differing_config,
    is_path,
    left_out,
    named_parts,
    optimised,
    ordered,
    pareto_front,
    short_names,
)
from imgcls.tools.compare.terminal import show

NO_SETTINGS = ("tags", "data.root")  # words on a run, and where its data lies, make it no other config


@dataclass(frozen=True)
class CompareConfig:
    """Keys of conf/compare.yaml."""

    runs: str | list[str]
    where: str | list[str] | None
    sort: str | None
    metric: str | None
    average: str | None
    baseline: str | None
    failed: bool
    debug_runs: bool
    group: str | None


def main(config: CompareConfig, run_dir: Path) -> None:
    """Compares runs, and names those that are damaged or did not finish."""
    if config.group:
        print(f"group={config.group}: the word for it is average={config.group} now")
        config = replace(config, average=config.average or config.group)
    if config.baseline and not config.average:
        needed = "average=seed or average=fold, over which runs are paired"
        raise UserError(f"baseline={config.baseline} needs {needed}")
    table, notes = left_out(read_runs(config.runs), config.failed, config.debug_runs)
    table = where(table, config.where)
    baseline = where(table, config.baseline, "baseline")["path"] if config.baseline else None
    found = compared(table, config, notes)
    if config.average:
        found = averaged(found, column(found.table, config.average), baseline)
        assert found.groups is not None
        found.groups.to_csv(run_dir / "groups.csv", index=False, errors="backslashreplace")
    first = ["name", *found.first(), *found.rest()]
    whole = found.table[list(dict.fromkeys([*first, *found.table]))]
    whole.to_csv(run_dir / "runs.csv", index=False, errors="backslashreplace")
    show(found)
    write_page(found, run_dir / "index.html")
    print(f"page: {shown(run_dir / 'index.html')}\ntable: {shown(run_dir / 'runs.csv')}")


def compared(table: pd.DataFrame, config: CompareConfig, notes: list[str]) -> Comparison:
    """Returns the comparison of runs: their order, what differs, which are on the front, and what matters."""
    target = column(table, config.metric) if config.metric else optimised(table)
    if not table[target].dtype.kind == "f" or table[target].isna().all():
        raise UserError(f"metric={target}: none of the runs that are compared has such a measured value")
    by, sweeps = column(table, (config.sort or target).removeprefix("-")), searched(table["path"])
    reverse = (config.sort or "").startswith("-")
    table = ordered(named_parts(table), by, reverse)
    differing = differing_config(table)
    if "data" in differing:
        sets = ", ".join(table["data"].dropna().unique())
        notes = [*notes, f"several data sets, whose metrics do not compare: {sets}"]
        differing = ["data", *(name for name in differing if name != "data")]
    objectives = {f"best/{name}": mode for name, mode in sweeps.objectives.items()}
    objectives = {name: mode for name, mode in objectives.items() if name in table}
    closing = list[str]()
    if len(objectives) > 1:
        front = pareto_front(table, objectives)
        table[FRONT] = front.map({True: "*", False: ""})
        words = " and ".join(f"{name.removeprefix('best/')} ({mode})" for name, mode in objectives.items())
        closing = [f"Pareto front of {words}, marked *: {', '.join(table.loc[front, 'name'])}"]
    paths = [name for name in differing if is_path(table[name])]
    settings = [name for name in differing if name not in NO_SETTINGS]
    return Comparison(
        table,
        short_names(table["name"]),
        [name for name in differing if name not in paths],
        paths,
        target,
        by,
        pair=pair_of(table),
        matters=importance(table, settings, target, sweeps.logarithmic),
        notes=notes,
        closing=closing,
        scales=dict.fromkeys(sweeps.linear, False) | dict.fromkeys(sweeps.logarithmic, True),
        reverse=reverse,
    )


def pair_of(table: pd.DataFrame) -> dict[str, list[tuple[str, object, object]]]:
    """Returns how two runs differ; of more or fewer runs, nothing."""
    if len(table) == 2:
        with contextlib.suppress(Damaged):  # which is named
            return differences(*map(Path, table["path"]))
    return {}


def averaged(found: Comparison, over: str, baseline: "pd.Series[str] | None") -> Comparison:
    """Returns the comparison with the means of each config, tested against that of the `baseline` runs."""
    keys = [name for name in (*found.differing, *found.paths) if name not in (*NO_SETTINGS, over)]
    counted, repeats = once_each(found.table, [*keys, over], found.target)
    rows = None if baseline is None else counted.index[counted["path"].isin(baseline)]
    groups, notes = grouped(counted, over, keys, found.target, rows)
    members = numbered(counted, keys)
    return replace(found, groups=groups, notes=found.notes + repeats, of_groups=notes, members=members)
