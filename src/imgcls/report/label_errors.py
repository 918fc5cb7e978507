"""Likely label errors of a test: images whose label the network denies, by confident learning (Northcutt et
al. 2021, arXiv:1911.00068) as cleanlab has it. cleanlab is an extra, because its license is the AGPL."""

import importlib.util
from dataclasses import dataclass

import numpy as np
import pandas as pd

USUAL = 0.033  # share of wrong labels in ten published test sets (Northcutt et al. 2021, arXiv:2103.14749)
CREDIBLE = 0.1  # about three times as many
MOST = 10**8  # probabilities that a test keeps for this: 400 MB
INSTALL = "cleanlab finds them, and is not installed; in the clone: pip install -e '.[labels]'"


@dataclass
class LabelErrors:
    """Images whose label is likely wrong, the likeliest first; or a note of why nobody looked for them."""

    table: pd.DataFrame  # name, given and suggested (class names), the probability of each, index
    note: str = ""
    doubt: str = ""  # why the list says little


def reason_against(images: int, classes: int) -> str:
    """Returns why label errors can't be looked for in a test; "": they can."""
    if importlib.util.find_spec("cleanlab") is None:
        return INSTALL
    if images * classes > MOST:
        return f"not looked for: {images:,} × {classes:,} probabilities are more than a test keeps"
    return ""


def find_label_errors(
    predictions: pd.DataFrame, targets: np.ndarray, probabilities: np.ndarray
) -> LabelErrors:
    """Returns the likely label errors.

    Args:
        predictions: a row for each image: name, target and prediction (class names), confidence, index.
        targets: their classes `(N,) int64`.
        probabilities: of all classes `(N, K) float32`.
    """
    from cleanlab.filter import find_label_issues

    places = find_label_issues(
        targets,
        probabilities,
        filter_by="confident_learning",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    found = predictions.iloc[places]
    table = found[["name"]].assign(given=found["target"], suggested=found["prediction"])
    table["given_probability"] = probabilities[places, targets[places]]
    table = table.assign(suggested_probability=found["confidence"], index=found["index"])
    return LabelErrors(table, doubt=doubt_about(len(table), len(targets)))


def doubt_about(found: int, images: int) -> str:
    """Returns why so many likely label errors say little of the labels; "": they are credible."""
    if found <= CREDIBLE * images:
        return ""
    share = f"{found / images:.0%} of the labels, where published test sets have {USUAL:.1%} wrong on average"
    return f"the network may be too weak to tell: it denies {share}"
