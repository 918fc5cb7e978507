"""What matters: how much of a metric the hyper-parameters explain, and which of them. A random forest that
predicts no better than one of shuffled values is not spoken of. docs/comparing.md says how it is computed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from imgcls.runs.read import finished, written

LEAST_RUNS = 8
TREES, DEPTH = 32, 8
SAMPLES = 256  # runs that a tree is grown from, at most: it takes seconds for 1,000 runs
SHUFFLES, EXCEEDING = 39, 1  # p is at most (1 + EXCEEDING) / (1 + SHUFFLES), 5%
REPEATS = 10  # of the shuffling of one parameter
NO_PARAMETERS = ("seed", "data.fold", "data")
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Importance:
    """R² of runs that a tree has not seen, with its 95% interval, and how the parameters share it: each one's
    part with its standard deviation, the largest first. `why` says why there is none."""

    why: str = ""
    r2: tuple[float, float, float] | None = None  # and low, high
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)


def importance(table: pd.DataFrame, names: list[str], target: str, logarithmic: set[str]) -> Importance:
    """Returns what matters for `target` among the config's `names`. `logarithmic` are those that the sweep
    searched on a logarithmic scale; the values do not say."""
    done = finished(table, target)
    done = done[np.isfinite(done[target])]
    if len(done) < LEAST_RUNS:
        return Importance(f"{len(done)} finished runs are too few; at least {LEAST_RUNS} are needed")
    if (sets := done["data"].nunique()) > 1:
        return Importance(f"the runs are of {sets} data sets; choose one by where=data=…")
    names = [name for name in names if name not in NO_PARAMETERS and done[name].nunique(dropna=False) > 1]
    if not names:
        return Importance("no value of the config differs")
    parts = {name: encoded(done[name], name in logarithmic) for name in names}
    return explained(parts, done[target].to_numpy(float))


def encoded(values: "pd.Series[float]", logarithmic: bool) -> np.ndarray:
    """Returns numbers as they are, or their logarithms; words, as a column of 0 and 1 for each."""
    if pd.api.types.is_numeric_dtype(values) and values.dtype != bool:
        numbers = values.to_numpy(float)
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        if logarithmic and not (numbers <= 0).any():
            numbers = np.log(numbers)
        return numbers[:, None].astype(np.float32)
    return pd.get_dummies(values.map(written)).to_numpy(np.float32)


def explained(parts: dict[str, np.ndarray], y: np.ndarray) -> Importance:
    """Returns what columns, some for each parameter, explain of `y`; nothing where shuffled values do as
    well, in more than 5% of cases."""
    x, rng = np.concatenate(list(parts.values()), axis=1), np.random.default_rng(0)
    trees, unseen = forest(x, y, 0)
    found = predictions(trees, unseen, x)
    r2, exceeding = score(y, found), 0
    low, high = spread(y, found, rng)
    words = f"out-of-bag R² {r2:.2f} ({low:.2f} to {high:.2f})"
    for shuffle in range(SHUFFLES):
        shuffled = rng.permutation(y)
        others = predictions(*forest(x, shuffled, 1 + shuffle), x) if r2 > 0 else shuffled
        exceeding += r2 <= 0 or score(shuffled, others) >= r2
        if exceeding > EXCEEDING:
            return Importance(
                f"the parameters explain no more of it than chance would: {words}", (r2, low, high)
            )
    drops, start = dict[str, list[float]](), 0
    for name, columns in parts.items():
        drops[name], changed = [], x.copy()
        own = slice(start, start + columns.shape[1])
        for _ in range(REPEATS):
            changed[:, own] = x[rng.permutation(len(x)), own]
            drops[name].append(r2 - score(y, predictions(trees, unseen, changed)))
        start = own.stop
    whole = sum(max(float(np.mean(own)), 0.0) for own in drops.values()) or 1.0
    out = {
        n: (r2 * max(float(np.mean(d)), 0.0) / whole, r2 * float(np.std(d)) / whole) for n, d in drops.items()
    }
    return Importance("", (r2, low, high), dict(sorted(out.items(), key=lambda item: -item[1][0])))


def forest(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[list[Predict], np.ndarray]:
    """Returns the trees of a random forest (Breiman 2001), and for each the runs that it has not seen."""
    from sklearn.ensemble import RandomForestRegressor

    size = min(len(y), SAMPLES)
    found = RandomForestRegressor(TREES, max_depth=DEPTH, max_samples=size, random_state=seed).fit(x, y)
    unseen = np.ones((TREES, len(y)), bool)
    for row, seen in zip(unseen, found.estimators_samples_, strict=True):
        row[seen] = False
    return [tree.tree_.predict for tree in found.estimators_], unseen


def predictions(trees: list[Predict], unseen: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns for each run the mean of the trees that have not seen it; NaN where all have."""
    own = np.stack([tree(x)[:, 0] for tree in trees])
    counts = unseen.sum(0)
    return np.where(counts > 0, (own * unseen).sum(0) / np.maximum(counts, 1), np.nan)


def score(y: np.ndarray, found: np.ndarray) -> float:
    """Returns R²: 1 less the share of the variance that is left; 0 where nothing varies."""
    known = np.isfinite(found)
    whole = ((y[known] - y[known].mean()) ** 2).sum()
    return float(1 - ((y[known] - found[known]) ** 2).sum() / whole) if whole > 0 else 0.0


def spread(
    y: np.ndarray, found: np.ndarray, rng: np.random.Generator, draws: int = 1000
) -> tuple[float, float]:
    """Returns the middle 95% of R² over bootstrap samples of the runs."""
    rows = rng.integers(len(y), size=(draws, len(y)))
    low, high = np.percentile([score(y[row], found[row]) for row in rows], [2.5, 97.5])
    return float(low), float(high)
