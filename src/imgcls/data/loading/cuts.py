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
    Sechidis et al. 2011, a label at a time); then samples change sides until no label gains."""
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
    chosen = np.concatenate([*share, unlabelled[: round(fraction * len(unlabelled))]])
    return evened(labels, np.isin(np.arange(len(labels)), chosen), fraction)


def evened(labels: np.ndarray, chosen: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the sorted indices of a share like `chosen (N,) bool`, nearer to the share of each label and of
    all samples: the sample whose change of sides helps most changes, as long as one helps. None is the last
    one of its label on a side."""
    columns = np.hstack([labels, np.ones((len(labels), 1), bool)]).astype(np.float32)  # the last one: all
    there, chosen = columns.sum(0), chosen.copy()
    wanted = np.clip(fraction * there, 1, np.maximum(there - 1, 1))
    scale = 1 / wanted  # chi-square: shares of rare labels count more
    for _ in range(1000):
        got, side = chosen @ columns, np.where(chosen, 1, -1)
        excess = got - wanted
        if (abs(excess) <= np.maximum(0.5, 0.01 * wanted)).all():
            break
        gain = 2 * side * (columns @ (excess * scale)) - columns @ scale
        for part, count in ((chosen, got), (~chosen, there - got)):
            gain[part & (columns[:, count == 1] > 0).any(1)] = 0
        if gain.max() <= 1e-6:
            break
        chosen[gain.argmax()] ^= True
    return np.flatnonzero(chosen)
