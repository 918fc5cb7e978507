"""Splits: their names, the cut of one from another, the checks of each, and its unreadable images."""

import csv
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from imgcls.config.paths import shown
from imgcls.data.batch import Batch, ImageDataset
from imgcls.data.loading.decode import UnreadableImage
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


def with_stand_ins(
    read: Callable[[list[int]], Batch], keys: Sequence[int], length: int, black: Tensor
) -> Batch:
    """Returns a batch in which copies of readable images, with their targets, stand for the others, or where
    there are none `black (C, H, W)` with targets -1. An index `~i` says that the image `i` can't be read."""
    found: list[Batch | None] = [None] * len(keys)
    for place, key in enumerate(keys):
        with suppress(UnreadableImage):
            found[place] = read([key])
    whole = [batch for batch in found if batch is not None]
    if not whole:
        whole = [Batch(black[None], torch.tensor([-1]), torch.tensor(0))]
    chosen = [batch or whole[place % len(whole)] for place, batch in enumerate(found)]
    index = torch.as_tensor(keys).clamp_min(0) % length
    images, targets = (torch.cat([batch[column] for batch in chosen]) for column in (0, 1))
    return Batch(images, targets, torch.where(torch.tensor([b is None for b in found]), ~index, index))


class Unreadable:
    """The images of a split that a run can't read, in unreadable.csv of its `folder`; `most`: their share."""

    def __init__(self, split: str, images: ImageDataset, training: bool, most: float, folder: Path) -> None:
        self.split, self.images, self.training, self.most = split, images, training, most
        self.path, self.names = folder / "unreadable.csv", set[str]()

    def note(self, batch: Batch) -> Batch:
        """Lists the images that the workers could not read; in evaluation they become padding. UserError:
        there are too many, or in training none of a batch can be read."""
        bad = batch.indices < 0
        if not bad.any():
            return batch
        indices = torch.where(bad, ~batch.indices, batch.indices)
        for index in indices[bad].unique().tolist():
            self.add(index)
        if not self.training:
            return Batch(batch.images, batch.targets.masked_fill(bad, -1), indices)
        if (batch.targets < 0).any():
            raise UserError(f"no image of a batch can be read; see {shown(self.path)}")
        return batch._replace(indices=indices)

    def add(self, index: int) -> None:
        """Lists an image, unless this or another process, or the run before a resume, has listed it."""
        name = self.images.name(index)
        if name in self.names:
            return
        self.names |= {row["path"] for row in listed(self.path) if row["split"] == self.split}
        if name not in self.names:
            log.warning("%s can't be read and is left out; see %s", shown(name), shown(self.path))
            new, reason = not self.path.exists(), "it can be read now"
            try:
                self.images.picture(index)
            except UnreadableImage as error:
                reason = error.reason()
            with self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
                row = (self.split, name, reason)
                csv.writer(file).writerows([("split", "path", "reason"), row] if new else [row])
            self.names.add(name)
        if len(self.names) > self.most * len(self.images):
            count = f"{len(self.names)} of {len(self.images):,} {self.split} images can't be read"
            most = f"a larger share than data.max_errors={self.most:g}"
            raise UserError(f"{count}, {most}; see {shown(self.path)}: mend them, or allow more")


def listed(path: Path) -> list[dict[str, str]]:
    """Returns the rows of an unreadable.csv: split, path, reason."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))
