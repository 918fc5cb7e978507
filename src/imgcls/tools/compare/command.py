"""imgcls compare: shows runs side by side, from their directories alone: a table, a CSV file and a page."""

import contextlib
import re
import warnings
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from imgcls.config.paths import shown
from imgcls.config.training import direction
from imgcls.errors import UserError, nearest
from imgcls.runs.read import COSTS, FACTS, METRICS, finished, read_runs, written
from imgcls.runs.run_files import Damaged, differences
from imgcls.tools.compare import page as compare_page

OPERATORS = {"!=": ne, "<=": le, ">=": ge, "=": eq, "<": lt, ">": gt}


@dataclass(frozen=True)
class CompareConfig:
    """Keys of conf/compare.yaml."""

    runs: str | list[str]
    where: str | list[str] | None
    sort: str | None
    metric: str | None
    group: str | None
    baseline: str | None


def main(config: CompareConfig, run_dir: Path) -> None:
    """Compares runs, and names those that are damaged or did not finish."""
    if config.baseline and not config.group:
        raise UserError(
            f"baseline={config.baseline} needs group=seed or group=fold, over which runs are paired"
        )

    table = where(read_runs(config.runs), config.where)
    target = column(table, config.metric) if config.metric else optimised(table)
    if not table[target].dtype.kind == "f" or table[target].isna().all():
        raise UserError(f"metric={target}: none of the runs that are compared has such a measured value")
    by = column(table, (config.sort or target).removeprefix("-"))
    table = ordered(table, by, (config.sort or "").startswith("-"))
    differing = sorted(differing_config(table), key=lambda name: name != by)  # it is the last to find no room
    groups, pair, notes = None, {}, list[str]()
    if config.group:
        over = column(table, config.group)
        keys = [name for name in differing if name != over]
        counted, notes = once_each(table, [*keys, over], target)
        groups = grouped(counted, over, keys, target, config.baseline)
    if len(table) == 2:
        with contextlib.suppress(Damaged):  # which is named
            pair = differences(*map(Path, table["path"]))
    table.to_csv(run_dir / "runs.csv", index=False, errors="backslashreplace")
    if groups is not None:
        groups.to_csv(run_dir / "groups.csv", index=False, errors="backslashreplace")
    found = compare_page.Comparison(table, differing, target, groups, pair, notes)
    compare_page.show(found)
    compare_page.write_page(found, run_dir / "index.html")
    print(f"page: {shown(run_dir / 'index.html')}\ntable: {shown(run_dir / 'runs.csv')}")


def column(table: pd.DataFrame, name: str) -> str:
    """Returns the column that a name means: `lr` is `optimizer.lr`, `val/top1` is `best/val/top1`."""
    ends = [found for found in table.columns if found.endswith(f".{name}")]
    for found in (name, *(ends if len(ends) == 1 else ()), f"best/{name}", f"test/{name}"):
        if found in table:
            return found
    advice = f"it could be {', '.join(ends)}; give one of them" if ends else nearest(name, table.columns)
    raise UserError(f"{name}: no run has a value of this name; {advice}")


def optimised(table: pd.DataFrame) -> str:
    """Returns the column of the metric that most of the runs optimised."""
    found = [name for name in table.columns if name.startswith("best/")]
    if not found:
        raise UserError("no run has a whole epoch in its metrics.csv: there is nothing to compare")
    wanted = {f"best/{metric}" for metric in table["optimized_metric"].mode()}
    return next((name for name in found if name in wanted), found[-1])


def where(table: pd.DataFrame, conditions: str | list[str] | None, key: str = "where") -> pd.DataFrame:
    """Returns the rows for which all conditions hold: `backbone=resnet20`, `lr<0.1`, `status!=finished`.

    Raises:
        UserError: no comparison, no such column, or no row is left.
    """
    for text in [conditions] if isinstance(conditions, str) else conditions or []:
        for condition in re.split(r"\s*,\s*|\s+and\s+", text.strip()):
            table = table[holds(table, condition, key)]
    if not len(table):
        raise UserError(f"{key}={conditions}: no run that is compared is like this; take a condition away")
    return table


def holds(table: pd.DataFrame, condition: str, key: str) -> Any:
    """Returns for each run whether one condition holds; numbers are compared as numbers, all else as text."""
    parts = re.fullmatch(r"([^!<>=]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)", condition)
    if parts is None:
        raise UserError(f"{key}={condition}: expected name=value, or with != < > <= >=")
    name, sign, text = parts.groups()
    values, compare = table[column(table, name)], OPERATORS[sign]
    given, numbers = pd.to_numeric(text, errors="coerce"), pd.to_numeric(values, errors="coerce")
    if given == given and numbers.notna().any():
        return compare(numbers, given)
    if sign not in ("=", "!="):
        raise UserError(f"{key}={condition}: {sign} compares numbers")
    return compare(values.map(written).str.lower(), text.lower())


def ordered(table: pd.DataFrame, by: str, reverse: bool = False) -> pd.DataFrame:
    """Returns the runs by a column: metrics best first, other values from small to large, or the reverse."""
    upwards = "/" not in by or direction(by) == "min"
    values = table[by]
    if values.dtype == object:  # numbers among words
        values = values.astype(str).where(values.notna())
    order = values.sort_values(ascending=upwards != reverse, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def differing_config(table: pd.DataFrame) -> list[str]:
    """Returns the config's names of which runs have different values, those of the command line first.

    A value that comes with another's choice (`backbone.depth` with `backbone`) is left out, unless a command
    line set it.
    """
    known = table[table["optimized_metric"].notna()]
    config = known.drop(columns=[*FACTS, *COSTS, "optimized_metric"])
    no_config = (*METRICS, "logger", "callbacks.pruning")
    found = [n for n in config.columns if not n.startswith(no_config) and config[n].nunique(dropna=False) > 1]
    words = " ".join(known["overrides"].dropna().astype(str).unique())
    given = [name for name in found if re.search(rf"(?:^|[ ,+]){re.escape(name)}=", words)]
    return given + [n for n in found if n not in given and not comes_with_choice(config, n, found)]


def comes_with_choice(config: pd.DataFrame, name: str, differing: list[str]) -> bool:
    """Says whether each choice of a group above a name, such as `backbone`, has one value of it alone."""
    for group in (name[: dot.start()] for dot in re.finditer(r"\.", name)):
        if group in differing:
            values = config.groupby(group, dropna=False)[name].nunique(dropna=False)
            if values.max() == 1:
                return True
    return False


def once_each(table: pd.DataFrame, names: list[str], target: str) -> tuple[pd.DataFrame, list[str]]:
    """Returns the newest finished run of those with the same values of `names`, and a line on the others.

    One of the names is the seed: a repeat is no new sample, and would make the spread smaller.
    """
    done = finished(table, target)
    ages = done["path"].map(lambda path: Path(path, "config.yaml").stat().st_mtime)
    newest = done.loc[ages.sort_values(kind="stable").index].drop_duplicates(names, keep="last")
    kept = done.loc[done.index.isin(newest.index)]
    left = done["name"].drop(kept.index)
    if not len(left):
        return kept, []
    named = ", ".join(left.head(5)) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
    return kept, [f"repeats: of runs with the same {names[-1]} and config the newest counts, not {named}"]


def grouped(
    table: pd.DataFrame, over: str, keys: list[str], target: str, baseline: str | None
) -> pd.DataFrame:
    """Returns mean and sample standard deviation over seeds or folds of the finished runs of each config.

    With a baseline also the mean difference from it over the seeds that both have, half of its 95% confidence
    interval, and p of the paired t-test and of Wilcoxon's signed-rank test (scipy.stats).
    """
    done = finished(table, target)
    if not len(done):
        raise UserError(f"group={over}: no run has finished, so there is no mean of {target}")
    keys = keys or ["data"]
    numbers = [n for n in (target, f"test/{target.rpartition('/')[2]}", "seconds") if n in table]
    done = done.assign(**{name: done[name].map(written) for name in keys})
    groups = done.groupby(keys, sort=False)
    out = groups[list(dict.fromkeys(numbers))].agg(["mean", "std"])
    out.columns = [" ".join(name) for name in out.columns]
    out.insert(0, "runs", groups.size())
    if baseline is not None:
        values = done.groupby([*keys, over], sort=False)[target].mean().unstack(over)
        chosen = where(done, baseline, "baseline")[keys].drop_duplicates()
        if len(chosen) > 1:
            raise UserError(
                f"baseline={baseline}: {len(chosen)} configs are like this; "
                f"expected one, by {', '.join(keys)}"
            )
        place: Any = tuple(chosen.iloc[0]) if len(keys) > 1 else chosen.iloc[0, 0]
        tests = [{} if i == place else paired_test(row, values.loc[place]) for i, row in values.iterrows()]
        out = out.join(pd.DataFrame(tests, index=values.index))
    return out.reset_index()


def paired_test(values: "pd.Series[float]", baseline: "pd.Series[float]") -> dict[str, float]:
    """Compares two configs by their runs with the same seed or fold; of fewer than two pairs is no test."""

    differences = (values - baseline).dropna()
    out = {"pairs": len(differences), "difference": differences.mean()}
    if len(differences) > 1 and differences.std() > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they say that samples are few; the number stands beside
            test = stats.ttest_1samp(differences, 0)
            low, high = test.confidence_interval(0.95)
            wilcoxon = stats.wilcoxon(differences).pvalue
        out |= {"95%": (high - low) / 2, "p (t)": test.pvalue, "p (Wilcoxon)": wilcoxon}
    return out
