"""The names of the splits, how one is cut from another, and what each must hold."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imgcls.errors import UserError

SPLITS = ("train", "val", "test")


def stratified(targets: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of a part of `targets` with the same share of each class.

    A class gives at least one sample and keeps one, where it has two.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    by_label = np.argsort(targets, kind="stable")
    for members in np.split(by_label, np.flatnonzero(np.diff(targets[by_label])) + 1):
        count = min(max(round(fraction * len(members)), 1), max(len(members) - 1, 1)) if fraction < 1 else len(members)
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def stratified_fold(targets: np.ndarray, folds: int, fold: int, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of one of `folds` parts of `targets`, which share nothing and hold all of it.

    Of each class, and of all, each part has the same number of samples, or one more.
    """
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    by_label = shuffled[np.argsort(targets[shuffled], kind="stable")]
    return np.sort(by_label[fold::folds])


def check_targets(targets: Tensor, class_names: Sequence[str], split: str) -> None:
    """Raises UserError where a split is empty, a label is out of range, or a class has no image."""
    if not len(targets):
        raise UserError(f"the {split} split is empty; give it images, or a larger share of them")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= len(class_names):
        raise UserError(
            f"the {split} split has labels from {low} to {high}; expected 0 to {len(class_names) - 1}, "
            f"one for each of the {len(class_names)} classes"
        )
    counts = torch.bincount(targets, minlength=len(class_names))
    if empty := [class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]:
        raise UserError(
            f"the {split} split has no image of {len(empty)} of {len(class_names)} classes ({', '.join(empty[:5])}"
            f"{', …' if len(empty) > 5 else ''}); give each class an image in each split"
        )
