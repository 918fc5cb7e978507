"""The base of all datamodules: splits, loaders, and the batch that they yield."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from pydantic import Field
from torch.utils.data import DataLoader

from imgcls.augment.image import Augment
from imgcls.data.batch import Batch, ImageDataset
from imgcls.data.loading.sampler import EpochSampler
from imgcls.data.loading.splits import SPLITS, Cut, check_targets, name_absent, stratified, stratified_fold
from imgcls.errors import UserError
from imgcls.spec import DataSpec

Place = Annotated[
    str, Field(min_length=1)
]  # a folder or an address: an empty one would be the working directory
Share = Annotated[float, Field(gt=0, le=1)]  # of the training images
Positive = Annotated[int, Field(ge=1, strict=True)]  # strict: true would be 1


class Loader(DataLoader[Batch]):
    """A DataLoader that can go on within an epoch. It looks at its sampler when the first batch is asked for, by when
    Lightning has set the epoch, also at a resume."""

    sampler: EpochSampler  # type: ignore[assignment]
    samples, resumed = (
        0,
        False,
    )  # what this process was given in this epoch; whether by a run that was stopped
    note: Callable[[Batch], Batch] | None = (
        None  # what the host does with a batch, before it goes to the device
    )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.samples = self.samples if self.resumed else 0
        self.resumed, self.sampler.skip = False, self.samples
        for batch in super().__iter__():
            self.samples += len(batch.targets)
            yield batch if self.note is None else self.note(batch)

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.samples, self.resumed = state["samples"], True


class ImageDataModule(LightningDataModule):
    """A source of images. A subclass says what it holds (`spec`) and loads a split (`load`).

    Args:
        batch_size: images a step on each device.
        num_workers: processes that decode; null: none for sets in memory, one a core for folders.
        fraction: stratified share of the training images that is used.
        val_fraction: stratified share of train that becomes the validation split, where the set has none.
        test_fraction: likewise for test. The cuts are the same for every seed.
        folds, fold: cross-validation: train is cut into so many stratified parts, and the part of that number, counted
            from 0, is the validation split, in place of the set's own.
        shuffle: false: training has the same order in each epoch.
        repeats: how often each sample comes in an epoch, augmented anew each time, on different ranks where there
            are several (Hoffer et al. 2019). An epoch keeps its length: it has so many times fewer samples.
        seed: of the order and of what workers draw.
        augment: what is done to training images (conf/augment).
        image_size, channels, mean, std, crop_ratio, interpolation, mirror: as in `DataSpec`; null: what the source says.
    """

    def __init__(
        self,
        *,
        batch_size: Positive = 128,
        num_workers: Annotated[int, Field(ge=0, strict=True)] | None = None,
        fraction: Share = 1.0,
        val_fraction: Cut = 0.1,
        test_fraction: Cut = 0.2,
        folds: Annotated[int, Field(ge=2, strict=True)] | None = None,
        fold: Annotated[int, Field(ge=0, strict=True)] | None = None,
        shuffle: bool = True,
        repeats: Positive = 1,
        seed: int = 0,
        augment: Augment | None = None,
        image_size: Positive | None = None,
        channels: Literal[1, 3] | None = None,
        mean: Annotated[list[float], Field(min_length=1)] | None = None,
        std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None,
        crop_ratio: Annotated[float, Field(gt=0, le=1)] | None = None,
        interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None,
        mirror: bool | None = None,
    ) -> None:
        super().__init__()
        facts: dict[str, Any] = {"image_size": image_size, "channels": channels, "mean": mean, "std": std}
        facts |= {"crop_ratio": crop_ratio, "interpolation": interpolation, "mirror": mirror}
        self.facts = {name: fact for name, fact in facts.items() if fact is not None}
        if (folds, fold) != (None, None) and (folds is None or fold is None or fold >= folds):
            raise UserError(
                f"data.folds={folds} data.fold={fold}: expected 2 folds or more, and a fold from 0 to folds - 1"
            )
        self.batch_size, self.num_workers = batch_size, num_workers
        self.fraction, self.val_fraction, self.test_fraction = fraction, val_fraction, test_fraction
        self.folds, self.fold = folds, fold
        self.shuffle, self.repeats, self.seed, self.augment = shuffle, repeats, seed, augment or Augment()
        self.sets: dict[str, ImageDataset] = {}

    max_errors = 1.0  # the share of unreadable images above which a run ends
    on_error = "raise"  # with "skip", targets may be -1 in evaluation by one process, too
    _spec: DataSpec  # a subclass sets it when it is made, before anything is downloaded or decoded

    @property
    def spec(self) -> DataSpec:
        """The set's facts."""
        return self._spec

    def use_spec(self, spec: DataSpec) -> None:
        """Takes the spec of a network that is to be tested on this data."""
        self._spec = spec

    @abstractmethod
    def load(self, split: str) -> ImageDataset | None:
        """Returns a split, or None where the set has no such split and it must be cut from train."""

    @abstractmethod
    def part(self, dataset: ImageDataset, indices: np.ndarray, training: bool) -> ImageDataset:
        """Returns the samples of `dataset` at `indices`, to be read as in training or as in evaluation."""

    def setup(self, stage: str | None = None) -> None:
        """Loads all splits and checks them; a second call does nothing."""
        if self.sets:
            return
        loaded = {split: self.load(split) for split in SPLITS}
        train = loaded["train"]
        assert train is not None
        rest = np.arange(len(train))
        sets: dict[str, ImageDataset] = {}
        for split, share in (
            ("test", self.test_fraction),
            ("val", self.val_fraction),
        ):  # test first: val can't move it
            own, folded = loaded[split], self.folds is not None and split == "val"
            if own is not None and not folded:
                sets[split] = self.part(own, np.arange(len(own)), training=False)
                continue
            targets = train.targets.numpy()[rest]
            if self.folds is not None and self.fold is not None and split == "val":
                cut = rest[stratified_fold(targets, self.folds, self.fold)]
            else:
                cut = rest[stratified(targets, share)]
            rest = np.setdiff1d(rest, cut, assume_unique=True)
            sets[split] = self.part(train, cut, training=False)
        if self.fraction < 1:
            rest = rest[stratified(train.targets.numpy()[rest], self.fraction)]
        sets["train"] = self.part(train, rest, training=True)
        for split in SPLITS:
            check_targets(sets[split].targets, self.spec.class_names, split)
            name_absent(sets[split].targets, self.spec.class_names, split)
            sets[split].seed = self.seed
        self.sets = sets

    def setup_test(self, split: str) -> None:
        """Makes the test set of another split, read as in evaluation, or of "all" images of a set without splits."""
        if split == "all":
            if self.load("test") is not None or self.load("val") is not None:
                raise UserError("split=all: this data has splits of its own; choose train, val or test")
            whole = self.load("train")
            assert whole is not None
            self.sets = {"test": self.part(whole, np.arange(len(whole)), training=False)}
            return
        self.setup()
        chosen = self.sets[split]
        self.sets = {**self.sets, "test": self.part(chosen, np.arange(len(chosen)), training=False)}

    def class_counts(self) -> list[int]:
        """Returns how many training images each class has."""
        return torch.bincount(self.sets["train"].targets, minlength=self.spec.num_classes).tolist()  # type: ignore[no-any-return]

    def fingerprint(self) -> dict[str, Any]:
        """Returns a hash of each split: of its targets and images in their order; of files the names, and the sizes
        of a sample of them."""
        out = {}
        for split, dataset in self.sets.items():
            digest = hashlib.blake2b(dataset.targets.cpu().numpy().data, digest_size=8)
            for part in dataset.contents():
                digest.update(part)
            out[split] = digest.hexdigest()
        return out

    def batches_per_epoch(self, ranks: int) -> int:
        """Returns the number of training batches that each of `ranks` processes gets in an epoch."""
        samples = len(self.sets["train"]) // ranks
        return max(samples // self.batch_size, 1)

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = EpochSampler(
            len(self.sets["train"]), self.seed, self.shuffle, training=True, repeats=self.repeats
        )
        return self._loader("train", sampler, drop_last=len(sampler) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """Returns the batches of a split, each sample once, in order."""
        return self._loader(
            split, EpochSampler(len(self.sets[split]), 0, shuffle=False, training=False), False
        )

    def default_workers(self) -> int:
        return 0

    def _loader(self, split: str, sampler: EpochSampler, drop_last: bool) -> DataLoader[Batch]:
        workers = self.default_workers() if self.num_workers is None else self.num_workers
        return Loader(
            self.sets[split],
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and self.sets[split].device.type == "cpu",
        )


def _as_it_is(batch: Any) -> Any:
    return batch
