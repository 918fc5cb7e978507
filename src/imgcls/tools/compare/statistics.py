"""Averages over seeds or folds, and paired tests of configs against a baseline. docs/comparing.md says what
each number is; docs/compare_simulations.py, how often a test errs."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imgcls.errors import UserError
from imgcls.runs.read import finished, written
from imgcls.runs.run_files import direction

LEVEL = 0.05  # the share of tables, of configs that are equal, in which a test may err
FOLD, FOLDS = "data.fold", "data.folds"


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
    table: pd.DataFrame, over: str, keys: list[str], target: str, baseline: "pd.Index[int] | None" = None
) -> tuple[pd.DataFrame, list[str]]:
    """Returns a row for each config, which is what `keys` say, and lines on how to read it: the mean and
    sample standard deviation over seeds or folds (`over`) of its finished runs. `baseline` has rows of the
    config, one of each data set, that the others are tested against: `compared` has what is added then."""
    done, keys = finished(table, target), keys or ["data"]
    if not len(done):
        raise UserError(f"average={over}: no run has finished, so there is no mean of {target}")
    numbers = (target, f"test/{target.rpartition('/')[2]}", "seconds")
    done = done.assign(**{name: done[name].map(written) for name in keys})
    groups = done.groupby(keys, sort=False)
    means = groups[[name for name in dict.fromkeys(numbers) if name in table]].agg(["mean", "std"])
    means.columns = [" ".join(name) for name in means.columns]
    out, notes = pd.DataFrame({"runs": groups.size()}), list[str]()
    if baseline is not None:
        values = done.groupby([*keys, over], sort=False)[target].mean().unstack(over)
        chosen = baselines(done.loc[done.index.intersection(baseline)], keys)
        smaller = direction(target, table.attrs.get("better")) == "min"
        tests, notes = compared(values, chosen, shared_part(done, over), smaller)
        out = out.join(tests)
    return out.join(means).reset_index(), notes


def numbered(table: pd.DataFrame, keys: list[str]) -> dict[int, int]:
    """Returns by row of the table the place of its config among the rows of `grouped`."""
    written_keys = [table[name].map(written) for name in keys or ["data"]]
    places = table.groupby(written_keys, sort=False).ngroup()
    return {int(row): int(place) for row, place in places.items()}  # type: ignore[call-overload]


def baselines(chosen: pd.DataFrame, keys: list[str]) -> dict[str, Any]:
    """Returns the index of the config that is the baseline, by data set. Raises UserError: it is not one."""
    configs = chosen[keys].drop_duplicates()
    data = configs["data"] if "data" in keys else pd.Series("", configs.index)
    if not len(configs):
        raise UserError("baseline: no run like this has finished, so there is nothing to test against")
    if data.duplicated().any():
        where = " of one data set" if data.nunique() > 1 else ""
        raise UserError(
            f"baseline: {len(configs)} configs{where} are like this; expected one, by {', '.join(keys)}"
        )
    rows = configs.itertuples(index=False, name=None)
    return {name: row if len(keys) > 1 else row[0] for name, row in zip(data, rows, strict=True)}


def shared_part(done: pd.DataFrame, over: str) -> float:
    """Returns, for a mean over folds, test images by training images: n_test/n_train of Nadeau and Bengio
    (2003). Folds share most of their training images, so their values are no independent samples. Seeds: 0.
    Raises UserError: runs were cut into different numbers of folds."""
    if over != FOLD:
        return 0.0
    counts = sorted({int(count) for count in done[FOLDS].dropna()})
    if len(counts) != 1:
        numbers = " and ".join(map(str, counts))
        raise UserError(
            f"average=fold: runs with {numbers} folds do not pair; choose one by where=data.folds=…"
        )
    return 1 / (counts[0] - 1) if counts[0] > 1 else 0.0


def compared(
    values: pd.DataFrame, chosen: dict[str, Any], shared: float, smaller: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Returns for each config (a row of `values`, with a column for each seed or fold) its `paired_test`
    against the baseline of its data, corrected for all tests of the table, and lines on how to read it."""
    rows, several = list[dict[str, float]](), "data" in values.index.names
    sets = list(values.index.get_level_values("data")) if several else [""] * len(values)
    for data, (place, own) in zip(sets, values.iterrows(), strict=True):
        against = chosen.get(data)
        tested = against is not None and place != against
        rows.append(paired_test((own - values.loc[against]).dropna(), shared) if tested else {})
    out = pd.DataFrame(rows, index=values.index)
    if "p (t)" not in out:
        return out.reindex(columns=["difference", "pairs"]), [
            "no test: it takes two pairs or more that differ"
        ]
    late = chosen_late(values * (-1 if smaller else 1), sets, chosen)
    done = pd.Series(sets, values.index)[out["p (t)"].notna()].value_counts()
    count = int(sum(n * (n + 1) // 2 if data in late else n for data, n in done.items()))
    return corrected(out, count), reading(out, shared, count, bool(late))


def paired_test(differences: "pd.Series[float]", shared: float = 0.0) -> dict[str, float]:
    """Returns what the differences of two configs over the seeds or folds of both say: their mean, half of
    its 95% interval, the mean in standard deviations (Cohen's d of pairs), and p of the t-test. With
    `shared` the variance is that of Nadeau and Bengio (2003), `1/n + shared` times that of the differences;
    without, Wilcoxon's signed-rank test is added. Fewer than two pairs, or equal ones, are no test."""
    from scipy import special, stats  # takes a second; most comparisons have no baseline

    pairs, mean, std = len(differences), differences.mean(), differences.std()
    out = {"difference": mean, "pairs": pairs}
    if pairs < 2 or not std > 1e-9 * differences.abs().max():  # equal, but for rounding
        return out
    error = std * math.sqrt(1 / pairs + shared)
    out |= {"error": error, "95%": special.stdtrit(pairs - 1, 1 - LEVEL / 2) * error, "d": mean / std}
    out["p (t)"] = 2 * special.stdtr(pairs - 1, -abs(mean / error))
    if not shared:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they say that samples are few; a note says what follows
            out["p (Wilcoxon)"] = stats.wilcoxon(differences).pvalue
    return out


def chosen_late(values: pd.DataFrame, sets: Sequence[str], chosen: dict[str, Any]) -> list[str]:
    """Returns the data sets whose baseline is the best config. It may be the baseline for that: then all
    pairs of configs were in the running, and are corrected for."""
    means = values.mean(axis=1)
    best = means.groupby(np.asarray(sets)).max()
    return [data for data, place in chosen.items() if means.loc[place] == best[data]]


def corrected(tests: pd.DataFrame, count: int) -> pd.DataFrame:
    """Returns the tests with p corrected for `count` of them by Holm (1979), and with intervals that hold all
    together (Bonferroni), the effect first."""
    from scipy import special

    out = tests.copy()
    out["95% of all"] = special.stdtrit(tests["pairs"] - 1, 1 - LEVEL / 2 / count) * tests["error"]
    for name in [name for name in ("t", "Wilcoxon") if f"p ({name})" in tests]:
        out[f"p ({name}, Holm)"] = holm(tests[f"p ({name})"], count)
    first = ["difference", "95% of all", "d", "p (t, Holm)", "p (Wilcoxon, Holm)", "pairs"]
    last = ["95%", "p (t)", "p (Wilcoxon)"]
    return out[[name for name in (*first, *last) if name in out]]


def holm(p: "pd.Series[float]", count: int = 0) -> "pd.Series[float]":
    """Returns p values corrected by Holm (1979) for `count` tests, or as many as there are: with all below
    0.05 taken as differences, at most 5% of tables with equal configs have one. Missing ones stay missing."""
    ordered = p.dropna().sort_values()
    steps = ordered * (max(count, len(ordered)) - np.arange(len(ordered)))
    return steps.cummax().clip(upper=1).reindex(p.index)


def reading(tests: pd.DataFrame, shared: float, count: int, late: bool) -> list[str]:
    """Returns lines: what was corrected, and which test can't find anything with so few pairs."""
    pairs, least = int(tests["pairs"].max()), count * 2.0 ** (1 - int(tests["pairs"].max()))
    notes = []
    if count > 1:
        words = f"p is corrected for {count} tests (Holm); the intervals hold for all together (Bonferroni)"
        notes.append(words)
    if late and count > 1:
        notes.append("the baseline is the best config, and may be it for that: all pairs of configs count")
    if shared:
        notes.append("folds share training images: intervals and p allow for it (Nadeau and Bengio 2003)")
    elif least > LEVEL:  # all signs alike
        needed = math.ceil(1 + math.log2(count / LEVEL))
        words = f"p (Wilcoxon) can't be below {min(least, 1):.3g} with {pairs} pairs"
        notes.append(f"{words}{f' and {count} tests' if count > 1 else ''}; it takes {needed} for 0.05")
    return notes
