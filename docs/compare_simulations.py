"""How often compare errs: writes docs/compare_simulations.json and prints the tables of docs/comparing.md.

python docs/compare_simulations.py tables 10000
python docs/compare_simulations.py studies 1000     a fifth of them where a parameter matters
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from imgcls.tools.compare.importance import explained
from imgcls.tools.compare.statistics import compared, holm

LEVEL = 0.05
STORED = Path(__file__).with_suffix(".json")


def table_of_seeds(rng: np.random.Generator, configs: int, seeds: int) -> pd.DataFrame:
    """Returns the metric of equal configs (rows) with some seeds (columns), each with some luck for all."""
    noise, luck = rng.normal(size=(configs, seeds)), rng.normal(size=seeds)
    return pd.DataFrame(0.9 + 0.01 * (noise + luck), index=pd.Index(range(configs), name="config"))


def table_of_folds(rng: np.random.Generator, configs: int, folds: int, images: int = 100) -> pd.DataFrame:
    """Returns the accuracy on each fold of classifiers that are equal in expectation: each is a nearest mean
    that sees 5 features of its own, and all features tell the two classes apart equally well."""
    labels = rng.permutation(np.arange(images) % 2)
    features = rng.normal(size=(configs, images, 5)) + 0.3 * labels[:, None]
    fold, out = np.arange(images) % folds, np.empty((configs, folds))
    for one in range(folds):
        trained, tested = fold != one, fold == one
        means = [features[:, trained & (labels == label)].mean(1, keepdims=True) for label in (0, 1)]
        far = [((features[:, tested] - mean) ** 2).sum(-1) for mean in means]
        out[:, one] = ((far[1] < far[0]) == labels[tested]).mean(1)
    return pd.DataFrame(out, index=pd.Index(range(configs), name="config"))


def false_positives(
    tables: int, configs: int, columns: int, folds: bool, best: bool = False
) -> dict[str, float]:
    """Returns the share of tables, whose configs are all equal, with a p below 0.05 or an interval without 0,
    with and without corrections. `best`: the baseline is the best config, chosen after looking."""
    rng, found = np.random.default_rng(0), list[dict[str, bool]]()
    for _ in range(tables):
        values = (table_of_folds if folds else table_of_seeds)(rng, configs, columns)
        baseline = {"": values.mean(axis=1).idxmax() if best else 0}
        tests, _ = compared(values, baseline, 1 / (columns - 1) if folds else 0.0)
        plain = pd.Series(stats.ttest_1samp(values - values.loc[baseline[""]], 0, axis=1).pvalue)
        one = {
            "uncorrected": bool((plain < LEVEL).any()),
            "Holm, t": bool((tests["p (t, Holm)"] < LEVEL).any()),
            "interval without 0": bool((tests["difference"].abs() > tests["95% of all"]).any()),
        }
        if folds:
            one["Holm alone"] = bool((holm(plain) < LEVEL).any())
        else:
            one["Holm, Wilcoxon"] = bool((tests["p (Wilcoxon, Holm)"] < LEVEL).any())
        found.append(one)
    return {name: float(share) for name, share in pd.DataFrame(found).mean().items()}


def study(
    rng: np.random.Generator, runs: int, explains: float, bend: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the parameters of a search, on their scales, and a metric of which the learning rate explains a
    share of the variance, along a line, or with its best within (`bend`)."""
    scales = {"lr": (-4, -1), "weight_decay": (-5, -1), "label_smoothing": (0, 0.2)}
    parts = {name: rng.uniform(*ends, size=runs) for name, ends in scales.items()}
    parts["batch_size"] = rng.choice([32, 64, 128], size=runs).astype(float)
    effect = -np.abs(parts["lr"] + 2.2) if bend else parts["lr"]
    noise = rng.normal(size=runs)
    metric = np.sqrt(explains) * (effect - effect.mean()) / effect.std() + np.sqrt(1 - explains) * noise
    return {name: part[:, None].astype(np.float32) for name, part in parts.items()}, metric


def what_matters(studies: int, runs: int, explains: float = 0.0, bend: bool = False) -> dict[str, float]:
    """Returns in what share of studies nothing is said, and in what share the learning rate comes first."""
    rng, silent, first = np.random.default_rng(0), 0, 0
    for _ in range(studies):
        parts = explained(*study(rng, runs, explains, bend)).parts
        silent += not parts
        first += next(iter(parts), "") == "lr"
    return {"silent": silent / studies, "lr first": first / studies}


TABLES: list[dict[str, Any]] = [
    {"configs": 20, "columns": 5, "folds": False},
    {"configs": 20, "columns": 10, "folds": False},
    {"configs": 5, "columns": 3, "folds": False},
    {"configs": 2, "columns": 5, "folds": False},
    {"configs": 5, "columns": 5, "folds": True},
    {"configs": 5, "columns": 10, "folds": True},
    {"configs": 20, "columns": 5, "folds": False, "best": True},
]
STUDIES: list[dict[str, Any]] = [
    *({"runs": runs} for runs in (8, 20, 60)),
    *(
        {"runs": runs, "explains": share}
        for runs, share in ((8, 0.8), (8, 0.95), (8, 0.98), (20, 0.8), (60, 0.5), (60, 0.8))
    ),
    *({"runs": runs, "explains": 0.8, "bend": True} for runs in (20, 60)),
]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns rows as a table of Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        [f"{row[n]:.1%}" if type(row.get(n)) is float else str(row.get(n, "")) for n in names] for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells))


def main(part: str, number: int) -> None:
    """Runs the simulations of tables or of studies, stores them, and prints the table of the document."""
    start, found = time.monotonic(), list[dict[str, Any]]()
    for case in TABLES if part == "tables" else STUDIES:
        if part == "tables":
            found.append(case | {"tables": number} | false_positives(number, **case))
        else:
            fewer = max(number // 5, 1) if "explains" in case else number
            found.append(case | {"studies": fewer} | what_matters(fewer, **case))
        print(found[-1], flush=True)
    print(markdown(found))
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    command = f"python docs/compare_simulations.py {part} {number}"
    stored[part] = {"command": command, "seconds": round(time.monotonic() - start), "rows": found}
    STORED.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
