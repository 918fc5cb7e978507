"""Cuts: which samples of a set become another split, so that each class, or each label, has its share."""

import numpy as np


def share_of(targets: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of a share of the samples with these targets (see `Batch`): of each class or
    label that share, and one or more of it, but not all of two; of measures any samples."""
    if targets.ndim == 1 and not np.issubdtype(targets.dtype, np.floating):
        return stratified(targets, fraction, seed)
    generator = np.random.default_rng(seed)
    if np.issubdtype(targets.dtype, np.floating):
        return np.sort(generator.permutation(len(targets))[: max(round(fraction * len(targets)), 1)])
    return labels_stratified(targets.astype(bool), fraction, generator)


def fold_of(targets: np.ndarray, folds: int, fold: int, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of one of `folds` disjoint parts, cut as `share_of` cuts."""
    if targets.ndim == 1 and not np.issubdtype(targets.dtype, np.floating):
        return stratified_fold(targets, folds, fold, seed)
    rest = np.arange(len(targets))
    for left in range(folds, folds - fold, -1):
        rest = np.delete(rest, share_of(targets[rest], 1 / left, seed))
    return rest[share_of(targets[rest], 1 / (folds - fold), seed)] if fold < folds - 1 else rest


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


def labels_stratified(labels: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Returns the sorted indices of a share of the samples with `labels (N, K) bool`, in which each label has
    its share too: the label with the fewest samples left is shared out first (iterative stratification,
    Sechidis et al. 2011, a label at a time)."""
    wanted, missing = fraction * labels.sum(0), np.ones((2, labels.shape[1]), bool)  # 0: the share, 1: rest
    undecided, share = np.ones(len(labels), bool), list[np.ndarray]()
    while (left := labels[undecided].sum(0)).any():
        label = int(np.where(left > 0, left, len(labels) + 1).argmin())
        members = generator.permutation(np.flatnonzero(undecided & labels[:, label]))
        least, most = int(missing[0, label]), len(members) - int(missing[1, label])
        count = max(min(max(round(wanted[label]), least), most), 0)
        for part, chosen in enumerate((members[:count], members[count:])):
            missing[part] &= ~labels[chosen].any(0)
        wanted = wanted - labels[members[:count]].sum(0)
        undecided[members] = False
        share.append(members[:count])
    unlabelled = generator.permutation(np.flatnonzero(undecided))
    return np.sort(np.concatenate([*share, unlabelled[: round(fraction * len(unlabelled))]]))
