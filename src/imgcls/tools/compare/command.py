"""imgcls compare: shows runs side by side, from their directories alone: a table, a CSV file and a page."""

import contextlib
import re
import warnings
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imgcls.config.paths import shown
from imgcls.errors import UserError, nearest
from imgcls.runs.read import COSTS, FACTS, METRICS, finished, read_runs, written
from imgcls.runs.run_files import Damaged, differences, direction
from imgcls.tools.compare import page as compare_page

LEAST_RUNS = 8  # to say which hyper-parameter matters
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
        needed = "group=seed or group=fold, over which runs are paired"
        raise UserError(f"baseline={config.baseline} needs {needed}")
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
        groups.to_csv(run_dir / "groups.csv", index=False, errors="backslashreplace")
    if len(table) == 2:
        with contextlib.suppress(Damaged):  # which is named
            pair = differences(*map(Path, table["path"]))
    table.to_csv(run_dir / "runs.csv", index=False, errors="backslashreplace")
    found = compare_page.Comparison(table, differing, target, groups, pair, notes)
    compare_page.show(found)
    shares, why = importances(table, differing, target)
    compare_page.write_page(found, shares, why, run_dir / "index.html")
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
    Raises UserError where there is no comparison, no such column, or no row is left."""
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
    upwards = "/" not in by or direction(by, table.attrs.get("better")) == "min"
    values = table[by]
    if values.dtype == object:  # numbers among words
        values = values.astype(str).where(values.notna())
    order = values.sort_values(ascending=upwards != reverse, kind="stable").index
    return table.loc[order].reset_index(drop=True)


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


def once_each(table: pd.DataFrame, names: list[str], target: str) -> tuple[pd.DataFrame, list[str]]:
    """Returns the newest finished run of those with the same values of `names`, and a line on the others. One
    of the names is the seed: a repeat is no new sample, and would make the spread smaller."""
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
    interval, and p of the paired t-test and of Wilcoxon's signed-rank test (scipy.stats)."""
    done = finished(table, target)
    if not len(done):
        raise UserError(f"group={over}: no run has finished, so there is no mean of {target}")
    keys = keys or ["data"]
    by, numbers = ", ".join(keys), (target, f"test/{target.rpartition('/')[2]}", "seconds")
    done = done.assign(**{name: done[name].map(written) for name in keys})
    groups = done.groupby(keys, sort=False)
    out = groups[[name for name in dict.fromkeys(numbers) if name in table]].agg(["mean", "std"])
    out.columns = [" ".join(name) for name in out.columns]
    out.insert(0, "runs", groups.size())
    if baseline is not None:
        values = done.groupby([*keys, over], sort=False)[target].mean().unstack(over)
        chosen = where(done, baseline, "baseline")[keys].drop_duplicates()
        if len(chosen) > 1:
            many = f"{len(chosen)} configs are like this"
            raise UserError(f"baseline={baseline}: {many}; expected one, by {by}")
        place: Any = tuple(chosen.iloc[0]) if len(keys) > 1 else chosen.iloc[0, 0]
        tests = [{} if i == place else paired_test(row, values.loc[place]) for i, row in values.iterrows()]
        out = out.join(pd.DataFrame(tests, index=values.index))
    return out.reset_index()


def paired_test(values: "pd.Series[float]", baseline: "pd.Series[float]") -> dict[str, float]:
    """Compares two configs by their runs with the same seed or fold; of fewer than two pairs is no test."""
    from scipy import stats  # takes a second; most comparisons have no baseline

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


def importances(table: pd.DataFrame, names: list[str], target: str) -> tuple[dict[str, float], str]:
    """Returns each hyper-parameter's share in the spread of `target` over finished runs, or none, and why.
    The shares are those of fANOVA (Hutter et al. 2014) as Optuna has it."""
    done = finished(table[np.isfinite(table[target])], target)
    if len(done) < LEAST_RUNS:
        return {}, f"{len(done)} finished runs are too few; at least {LEAST_RUNS} are needed"
    try:
        import optuna
    except ModuleNotFoundError:
        return {}, "it needs Optuna; in the clone: pip install -e '.[sweep]'"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    params: dict[str, list[Any]] = {}
    kinds: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in (n for n in names if done[n].nunique(dropna=False) > 1):
        values = done[name]
        if pd.api.types.is_numeric_dtype(values) and values.dtype != bool and np.isfinite(values).all():
            low, high = float(values.min()), float(values.max())
            kinds[name] = optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 10)
            params[name] = values.astype(float).tolist()
        else:
            params[name] = values.map(written).tolist()
            kinds[name] = optuna.distributions.CategoricalDistribution(sorted(set(params[name])))
    if not kinds:
        return {}, "no value of the config differs"
    smaller = direction(target, table.attrs.get("better")) == "min"
    study = optuna.create_study(direction="minimize" if smaller else "maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is called experimental
        for value, *chosen in zip(done[target], *params.values(), strict=True):
            given = dict(zip(params, chosen, strict=True))
            study.add_trial(optuna.trial.create_trial(params=given, distributions=kinds, value=float(value)))
        # With trees of this size it takes seconds for 1,000 runs.
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, max_depth=8, seed=0)
        try:
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator)), ""
        except (ValueError, RuntimeError) as error:
            return {}, " ".join(str(error).split())
