"""Splits: their names, the checks of each, and its unreadable images."""

import csv
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from imgcls.config.paths import shown
from imgcls.data.batch import Batch, ImageDataset
from imgcls.errors import UnreadableImage, UserError
from imgcls.processes import rank

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Cut = Annotated[float, Field(gt=0, le=0.9)]  # the share of train that becomes another split
OptionalCut = Annotated[float, Field(ge=0, le=0.9)]  # 0: there is no such split


def check_targets(targets: Tensor, class_names: Sequence[str], split: str) -> None:
    """Raises UserError for an empty split, a target that is none, or a class without a training image."""
    if not len(targets):
        raise UserError(f"the {split} split is empty; give it images, or a larger share of them")
    low, high = targets.amin().item(), targets.amax().item()
    if targets.is_floating_point():
        if not targets.isfinite().all():
            raise UserError(f"the {split} split has targets that are not finite numbers; leave these out")
        return
    several, most = targets.ndim == 2, 1 if targets.ndim == 2 else len(class_names) - 1
    if low < 0 or high > most or (several and targets.shape[1] != len(class_names)):
        expected = f"expected 0 to {most}, one for each of the {len(class_names)} classes"
        given = f"labels from {low} to {high}" + (f" in {targets.shape[1]} columns" if several else "")
        raise UserError(f"the {split} split has {given}; {expected}")
    if split == "train" and (names := absent(targets, class_names)):
        raise UserError(f"the train split has no image of {names}; give each class an image to train on")


def name_absent(targets: Tensor, class_names: Sequence[str], split: str) -> None:
    """Warns of the classes that a split has no image of, because nothing is measured of them."""
    if rank() == 0 and (names := absent(targets, class_names)):
        effect = "such a class counts in mean precision, recall and F1 only where it is predicted"
        if targets.ndim == 2:
            effect = "such a label is left out of all means over labels"
        log.warning("the %s split has no image of %s; %s", split, names, effect)


def class_counts(targets: Tensor, classes: int) -> Tensor:
    """Returns how many samples each class or label has `(K,) int64`; of measures none."""
    if targets.is_floating_point():
        return torch.empty(0, dtype=torch.int64)
    return targets.sum(0) if targets.ndim == 2 else torch.bincount(targets, minlength=classes)


def absent(targets: Tensor, class_names: Sequence[str]) -> str:
    """Returns how many classes have no target, and the first of their names; "" where all have one."""
    counts = class_counts(targets, len(class_names))
    names = [class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(names)} of {len(class_names)} classes ({shown})" if names else ""


def with_stand_ins(
    read: Callable[[list[int]], Batch], keys: Sequence[int], length: int, black: Tensor, target: Tensor
) -> Batch:
    """Returns a batch in which copies of its readable images, with their targets, stand for the others; the
    draws for these stay. An index `~i` tells the host that the image `i` can't be read. Where none can,
    images are `black (C, H, W)` with any `target`, and not valid."""
    found: list[Batch | None] = [None] * len(keys)
    for place, key in enumerate(keys):
        with suppress(UnreadableImage):
            found[place] = read([key])
    whole = [batch for batch in found if batch is not None]
    if not whole:
        whole = [Batch(black[None], target[None], torch.tensor([0]), torch.tensor([False]))]
    chosen = [batch or whole[place % len(whole)] for place, batch in enumerate(found)]
    index = torch.as_tensor(keys).clamp_min(0) % length
    images, targets, valid = (torch.cat([batch[column] for batch in chosen]) for column in (0, 1, 3))
    index = torch.where(torch.tensor([batch is None for batch in found]), ~index, index)
    return Batch(images, targets, index, valid)


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
            return batch._replace(indices=indices, valid=batch.valid & ~bad)
        if not batch.valid.all():
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
