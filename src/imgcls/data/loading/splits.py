"""Splits: their names, the cut of one from another, and the check of what each must hold."""

import logging
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from imgcls.errors import UserError
from imgcls.processes import rank

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Cut = Annotated[float, Field(gt=0, le=0.9)]  # the share of train that becomes another split


def stratified(targets: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of a share of each class in `targets`: one or more, but not all of two."""
    generator = np.random.default_rng(seed)
    chosen = []
    by_label = np.argsort(targets, kind="stable")
    for members in np.split(by_label, np.flatnonzero(np.diff(targets[by_label])) + 1):
        most = len(members) - 1 if fraction < 1 else len(members)
        count = max(min(round(fraction * len(members)), most), 1)
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def stratified_fold(targets: np.ndarray, folds: int, fold: int, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of one of `folds` disjoint parts that `targets` is divided into. Of each
    class, and of all, each part has the same number of samples, or one more."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    by_label = shuffled[np.argsort(targets[shuffled], kind="stable")]
    return np.sort(by_label[fold::folds])


def check_targets(targets: Tensor, class_names: Sequence[str], split: str) -> None:
    """Raises UserError for an empty split, a label out of range, or a class without a training image."""
    if not len(targets):
        raise UserError(f"the {split} split is empty; give it images, or a larger share of them")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= len(class_names):
        expected = f"expected 0 to {len(class_names) - 1}, one for each of the {len(class_names)} classes"
        raise UserError(f"the {split} split has labels from {low} to {high}; {expected}")
    if split == "train" and (names := absent(targets, class_names)):
        raise UserError(f"the train split has no image of {names}; give each class an image to train on")


def name_absent(targets: Tensor, class_names: Sequence[str], split: str) -> None:
    """Warns of the classes that a split has no image of, because nothing is measured of them."""
    if rank() == 0 and (names := absent(targets, class_names)):
        effect = "such a class counts in mean precision, recall and F1 only where it is predicted"
        log.warning("the %s split has no image of %s; %s", split, names, effect)


def absent(targets: Tensor, class_names: Sequence[str]) -> str:
    """Returns how many classes have no target, and the first of their names; "" where all have one."""
    counts = torch.bincount(targets, minlength=len(class_names))
    names = [class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(names)} of {len(class_names)} classes ({shown})" if names else ""
