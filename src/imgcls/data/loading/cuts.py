"""Cuts: which samples of a set become another split, so that each class, or each label, has its share."""

import numpy as np

DENSE = 5e7  # numbers of a table of groups and labels, above which shares are not evened


def share_of(
    targets: np.ndarray, fraction: float, seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """Returns the sorted indices of a share of the samples with these targets (see `Batch`): of each class or
    label that share, and one or more of it, but not all of two; of measures any samples. Where `groups (N,)`
    says which samples belong together, the share has all of a group or none (`whole_groups`)."""
    if groups is not None:
        return whole_groups(targets, groups, fraction, seed)
    if targets.ndim == 1 and not np.issubdtype(targets.dtype, np.floating):
        return stratified(targets, fraction, seed)
    generator = np.random.default_rng(seed)
    if np.issubdtype(targets.dtype, np.floating):
        return np.sort(generator.permutation(len(targets))[: max(round(fraction * len(targets)), 1)])
    return labels_stratified(targets.astype(bool), fraction, generator)


def fold_of(
    targets: np.ndarray, folds: int, fold: int, seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """Returns the sorted indices of one of `folds` disjoint parts, cut as `share_of` cuts."""
    if groups is None and targets.ndim == 1 and not np.issubdtype(targets.dtype, np.floating):
        return stratified_fold(targets, folds, fold, seed)

    def share_of_rest(rest: np.ndarray, fraction: float) -> np.ndarray:
        return share_of(targets[rest], fraction, seed, None if groups is None else groups[rest])

    rest = np.arange(len(targets))
    for left in range(folds, folds - fold, -1):
        rest = np.delete(rest, share_of_rest(rest, 1 / left))
    return rest[share_of_rest(rest, 1 / (folds - fold))] if fold < folds - 1 else rest


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


def whole_groups(targets: np.ndarray, groups: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of all samples of some groups, near to a share of each class or label, and
    of all samples. A group counts as one of its rarest label; a label that one group alone has stays out of
    the share, and of two groups or more with it one is in the share, and one is not."""
    _, member_of = np.unique(groups, return_inverse=True)
    number = int(member_of.max()) + 1
    if np.issubdtype(targets.dtype, np.floating):  # measures: all are alike
        rows, labels = np.arange(len(targets)), np.zeros(len(targets), np.int64)
    else:
        rows, labels = targets.nonzero() if targets.ndim == 2 else (np.arange(len(targets)), targets)
    most = int(labels.max(initial=-1)) + 1
    pairs, counts = np.unique(member_of[rows] * max(most, 1) + labels, return_counts=True)
    group, label = np.divmod(pairs, max(most, 1))
    in_groups = np.bincount(label, minlength=most + 1)
    rarest, by_frequency = np.full(number, most), np.argsort(-in_groups[label], kind="stable")
    rarest[group[by_frequency]] = label[by_frequency]  # the rarest is written last
    chosen = np.isin(np.arange(number), stratified(rarest, fraction, seed))
    chosen &= in_groups[rarest] != 1
    if number * most <= DENSE:
        of_group = np.zeros((number, most + 1), np.float32)
        of_group[group, label] = counts
        of_group[:, most] = np.bincount(member_of)
        chosen = np.isin(np.arange(number), changed(of_group, chosen, fraction))
    return np.flatnonzero(chosen[member_of])


def evened(labels: np.ndarray, chosen: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the sorted indices of a share like `chosen (N,) bool`, nearer to the share of each of `labels
    (N, K) bool` and of all samples (`changed`)."""
    columns = np.hstack([labels, np.ones((len(labels), 1), bool)]).astype(np.float32)  # the last one: all
    return changed(columns, chosen, fraction)


def changed(columns: np.ndarray, chosen: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the sorted indices of rows like `chosen (N,) bool`, whose sum is nearer to the share of each of
    `columns (N, K) float32`: the row whose change of sides helps most changes, as long as one helps. None
    takes all of a column from a side."""
    there, most, chosen = columns.sum(0), columns.max(0), chosen.copy()
    wanted = np.clip(fraction * there, 1, np.maximum(there - 1, 1))
    scale = 1 / wanted  # chi-square: shares of rare labels count more
    for _ in range(1000):
        got, side = chosen @ columns, np.where(chosen, 1, -1)
        excess = got - wanted
        if (abs(excess) <= np.maximum(0.5, 0.01 * wanted)).all():
            break
        gain = 2 * side * (columns @ (excess * scale)) - columns**2 @ scale
        for part, count in ((chosen, got), (~chosen, there - got)):
            few = count <= most
            gain[part & ((columns[:, few] >= count[few]) & (columns[:, few] > 0)).any(1)] = 0
        if gain.max() <= 1e-6:
            break
        chosen[gain.argmax()] ^= True
    return np.flatnonzero(chosen)
