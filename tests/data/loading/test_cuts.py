"""Cuts of sets with several labels: each label has its share on both sides."""

from typing import Any

import numpy as np
import pytest
from support.labels import Squares

from imgcls.data.loading.cuts import evened, fold_of, share_of


def drawn(count: int, labels: int, most: float, least: float) -> np.ndarray:
    chances = np.linspace(most, least, labels)
    return (np.random.default_rng(1).random((count, labels)) < chances).astype(np.int64)


def off(targets: np.ndarray, chosen: np.ndarray, fraction: float) -> np.ndarray:
    """How far each label's count is beyond what is allowed: a sample, or a tenth."""
    wanted = fraction * targets.sum(0)
    return np.abs(targets[chosen].sum(0) - wanted) - np.maximum(1, 0.1 * wanted)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
@pytest.mark.parametrize(
    "targets", [drawn(400, 5, 0.5, 0.06), drawn(2000, 80, 0.5, 0.01), drawn(2000, 80, 0.05, 0.005)]
)
def test_each_label_has_its_share(targets: np.ndarray, fraction: float) -> None:
    chosen = share_of(targets, fraction)
    assert (np.diff(chosen) > 0).all() and off(targets, chosen, fraction).max() <= 0
    assert len(chosen) == pytest.approx(fraction * len(targets), rel=0.02)
    assert chosen.tolist() == share_of(targets, fraction).tolist() != share_of(targets, fraction, 1).tolist()


def test_a_rare_label_is_on_both_sides() -> None:
    targets = drawn(300, 20, 0.6, 0.3)
    targets[:, 0] = 0
    targets[[7, 80], 0] = 1
    for fraction in (0.01, 0.1, 0.9):
        chosen = share_of(targets, fraction)
        assert targets[chosen, 0].sum() == 1, fraction


def test_changes_of_sides_by_hand() -> None:
    """Of two samples of each label one is taken, wherever it began."""
    labels = np.repeat(np.eye(3, dtype=bool), 2, axis=0)
    for start in ([1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]):
        chosen = evened(labels, np.array(start, bool), 0.5)
        assert sorted(chosen // 2) == [0, 1, 2], start


def test_folds_are_disjoint_and_whole() -> None:
    targets = drawn(600, 12, 0.4, 0.05)
    folds = [fold_of(targets, 4, fold) for fold in range(4)]
    assert sorted(np.concatenate(folds).tolist()) == list(range(600))
    for fold in folds:
        assert off(targets, fold, 0.25).max() <= 0.1 * targets.sum(0).max()


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, {"test": 0.2, "val": 0.08, "train": 0.72}),
        ({"fraction": 0.5, "val_fraction": 0.25}, {"test": 0.2, "val": 0.2, "train": 0.3}),
        ({"folds": 4, "fold": 2}, {"test": 0.2, "val": 0.2, "train": 0.6}),
    ],
)
def test_splits_of_a_module(options: dict[str, Any], shares: dict[str, float]) -> None:
    data = Squares(count=1000, **options)
    data.setup()
    whole = data.load("train")
    assert whole is not None
    for split, share in shares.items():
        counts, wanted = data.sets[split].targets.sum(0), share * whole.targets.sum(0)
        assert ((counts - wanted).abs() <= (0.1 * wanted).clamp_min(1.5)).all(), (split, counts, wanted)
