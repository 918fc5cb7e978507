"""Base class of the data sources: cuts a set into splits and serves them in batches.

A source of your own is a subclass in a file beside this one, and a `conf/data/NAME.yaml` with its `_target_`:

- of `MemoryDataModule`, with `arrays`, where all images fit in memory (digits.py is an example);
- of `ImageFolder`, with `find`, where the files lie in one folder for each class;
- of `ImageDataModule`, with `load`, which returns an `ImageDataset` of your own, for anything else.

`__init__` sets `spec`, before anything is downloaded or decoded.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from pydantic import Field, PositiveFloat
from torch.utils.data import DataLoader, Dataset

from imgcls.augment.image import ImageTransform, worker_transform
from imgcls.augment.settings import Augment
from imgcls.data.batch import Batch, EpochSampler, ImageDataset, keep_batch
from imgcls.data.loading.cuts import fold_of, share_of
from imgcls.data.loading.sampling import Sampling, ShareSampler, check_sampling
from imgcls.data.loading.splits import SPLITS, Cut, OptionalCut, check_targets, class_counts, name_absent
from imgcls.errors import UserError
from imgcls.spec import DataSpec, ImageSize, Part

Place = Annotated[str, Field(min_length=1)]  # a folder or an address; "" would be the working directory
Positive = Annotated[int, Field(ge=1, strict=True)]  # strict: true would be 1
Natural = Annotated[int, Field(ge=0, strict=True)]


class Loader(DataLoader[Batch]):
    """A DataLoader that can resume within an epoch; it reads its sampler once Lightning has set the epoch."""

    sampler: EpochSampler  # type: ignore[assignment]
    samples = 0  # that this process was given in this epoch
    resumed = False  # whether a run that was stopped gave some of them
    decoded: Callable[[Iterator[Any]], Iterator[Batch]] | None = None  # makes batches of what workers read
    note: Callable[[Batch], Batch] | None = None  # the host applies it to each batch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.samples = self.samples if self.resumed else 0
        self.resumed, self.sampler.skip = False, self.samples
        batches = super().__iter__()
        for batch in batches if self.decoded is None else self.decoded(batches):
            self.samples += len(batch.targets)
            yield batch if self.note is None else self.note(batch)

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.samples, self.resumed = state["samples"], True


class ImageDataModule(LightningDataModule):
    """A source of images. A subclass sets `spec` and loads the splits (`load`).

    Args:
        batch_size: images that each device gets in a step.
        num_workers: processes that decode; null: none for sets in memory, one a core for folders.
        fraction: stratified share of the training images that is used.
        val_fraction: stratified share of train that becomes the validation split, where the set has none;
            0: nothing is validated, and the last epoch is tested.
        test_fraction: likewise for test. The cuts are the same for every seed.
        folds, fold: cross-validation: train is cut into so many stratified parts, and the part of that
            number, counted from 0, is the validation split, in place of the set's own.
        shuffle: false: training has the same order in each epoch.
        repeats: how often each sample comes in an epoch, augmented anew each time, on different ranks where
            there are several (Hoffer et al. 2019). An epoch keeps its length, with so many times fewer
            samples.
        sampling: which share of an epoch's samples a class has: "uniform": as in the split; "balanced": all
            classes the same; "sqrt": as the square root of its number of images (Mahajan et al. 2018).
        seed: of the order and of the draws in workers.
        augment: what is done to training images (conf/augment).
        image_size, train_size, channels, mean, std, crop_ratio, interpolation, fit, mirror: as in `DataSpec`;
            null: the source's own.
    """

    spec: DataSpec  # the set's facts
    all_classes: tuple[str, ...] = ()  # of a set that has these, though its folders may be fewer
    # The fields of the spec that pretrained weights decide where the config says null.
    of_weights: tuple[str, ...] = ("mean", "std")
    max_errors = 1.0  # the share of unreadable images above which a run ends
    tested = "test"  # the split that a test reads
    test_only: str | None = None  # why there is nothing to train on, of a set that is a test split alone
    # How a test of a network that gives one class is scored, where a set's publication says it:
    own_classes_only = False  # the logits of classes that the set lacks are left out
    any_label = False  # any of an image's labels is right, of targets (N, K)
    on_error = "raise"  # with "skip", targets may be -1 also where one process evaluates

    def __init__(
        self,
        *,
        batch_size: Positive = 128,
        num_workers: Natural | None = None,
        fraction: Part = 1.0,
        val_fraction: OptionalCut = 0.1,
        test_fraction: Cut = 0.2,
        folds: Annotated[int, Field(ge=2, strict=True)] | None = None,
        fold: Natural | None = None,
        shuffle: bool = True,
        repeats: Positive = 1,
        sampling: Sampling = "uniform",
        seed: int = 0,
        augment: Augment | None = None,
        image_size: ImageSize | None = None,
        train_size: ImageSize | None = None,
        channels: Literal[1, 3] | None = None,
        mean: Annotated[list[float], Field(min_length=1)] | None = None,
        std: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None,
        crop_ratio: Part | None = None,
        interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None,
        fit: Literal["crop", "squash", "pad"] | None = None,
        mirror: bool | None = None,
    ) -> None:
        super().__init__()
        facts: dict[str, Any] = {"image_size": image_size, "train_size": train_size, "channels": channels}
        facts |= {"mean": mean, "std": std, "crop_ratio": crop_ratio, "interpolation": interpolation}
        facts |= {"fit": fit, "mirror": mirror}
        self.facts = {name: fact for name, fact in facts.items() if fact is not None}
        if (folds, fold) != (None, None) and (folds is None or fold is None or fold >= folds):
            expected = "expected 2 folds or more, and a fold from 0 to folds - 1"
            raise UserError(f"data.folds={folds} data.fold={fold}: {expected}")
        if sampling != "uniform" and repeats > 1:
            raise UserError(f"data.sampling={sampling} data.repeats={repeats}: expected one of them")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.fraction, self.val_fraction, self.test_fraction = fraction, val_fraction, test_fraction
        self.folds, self.fold, self.seed, self.augment = folds, fold, seed, augment or Augment()
        self.shuffle, self.repeats, self.sampling = shuffle, repeats, sampling
        self.sets: dict[str, ImageDataset] = {}

    @abstractmethod
    def load(self, split: str) -> ImageDataset | None:
        """Returns a split, or None where the set has no such split and it must be cut from train."""

    def setup(self, stage: str | None = None) -> None:
        """Loads all splits and checks them; a second call does nothing. UserError: they are refused."""
        if self.sets:
            return
        if self.test_only:
            raise UserError(self.test_only)
        loaded = {split: self.load(split) for split in SPLITS}
        train = loaded["train"]
        assert train is not None
        rest, sets = np.arange(len(train)), dict[str, ImageDataset]()
        for split in ("test", "val"):  # test first: no setting of val can move it
            own = loaded[split]
            if own is not None and (split == "test" or self.folds is None):
                sets[split] = own.part(torch.arange(len(own)))
                continue
            targets = train.targets.numpy()[rest]
            groups = None if train.groups is None else train.groups.numpy()[rest]
            if split == "val" and self.folds is not None and self.fold is not None:
                cut = rest[fold_of(targets, self.folds, self.fold, groups=groups)]
            else:
                fraction = self.val_fraction if split == "val" else self.test_fraction
                cut = rest[share_of(targets, fraction, groups=groups)] if fraction else rest[:0]
            rest = np.setdiff1d(rest, cut, assume_unique=True)
            sets[split] = train.part(torch.from_numpy(cut))
        if self.fraction < 1:
            rest = rest[share_of(train.targets.numpy()[rest], self.fraction)]
        train = sets["train"] = train.part(torch.from_numpy(rest))
        train.transform = worker_transform(self.augment, self.spec, train.preparation(self.spec.for_training))
        for split in (split for split in SPLITS if len(sets[split]) or split != "val"):
            check_targets(sets[split].targets, self.spec.class_names, split)
            name_absent(sets[split].targets, self.spec.class_names, split)
            sets[split].seed = self.seed
        check_sampling(self.sampling, train.targets)
        self.sets = sets

    def setup_test(self, split: str) -> None:
        """Makes the test set of another split, as evaluation reads it, or "all" of a set without any."""
        if split == "all":
            if self.load("test") is not None or self.load("val") is not None:
                raise UserError("split=all: this data has splits of its own; choose train, val or test")
            images = self.load("train")
            assert images is not None
        elif split == "test" and self.test_only:
            images = self.load("test")
            assert images is not None
            check_targets(images.targets, self.spec.class_names, split)
            name_absent(images.targets, self.spec.class_names, split)
        else:
            self.setup()
            images = self.sets[split]
            if not len(images):
                raise UserError(f"split={split}: data.val_fraction=0 leaves none; choose train or test")
        self.sets = {**self.sets, "test": images.part(torch.arange(len(images)))}
        self.tested = "test" if split == "all" else split

    @property
    def views(self) -> int | None:
        """How many views of an image a training batch `(N, V, C, H, W)` has; None: it is `(N, C, H, W)`."""
        transform = self.sets["train"].transform
        return transform.views if isinstance(transform, ImageTransform) else None

    def class_counts(self) -> list[int]:
        """Returns how many training images each class or label has; none where targets are measures."""
        return [int(count) for count in class_counts(self.sets["train"].targets, self.spec.num_classes)]

    def fingerprint(self) -> dict[str, Any]:
        """Returns a hash of each split: of its targets and images; of files the names, some sizes."""
        out = {}
        for split, dataset in self.sets.items():
            digest = hashlib.blake2b(dataset.targets.cpu().numpy().data, digest_size=8)
            for part in dataset.contents():
                digest.update(part)
            out[split] = digest.hexdigest()
        return out

    def batches_per_epoch(self, ranks: int) -> int:
        """Returns the number of training batches that each of `ranks` processes gets in an epoch."""
        return max(len(self.sets["train"]) // ranks // self.batch_size, 1)

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = self.train_sampler()
        return self._loader("train", sampler, drop_last=len(sampler) >= self.batch_size)

    def train_sampler(self) -> EpochSampler:
        """Returns the order of the training samples."""
        train = self.sets["train"]
        if self.sampling != "uniform":
            return ShareSampler(train.targets, self.seed, self.shuffle, self.sampling)
        return EpochSampler(len(train), self.seed, self.shuffle, training=True, repeats=self.repeats)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """Returns the batches of a split, each sample once, in order."""
        sampler = EpochSampler(len(self.sets[split]), 0, shuffle=False, training=False)
        return self._loader(split, sampler, drop_last=False)

    def default_workers(self) -> int:
        return 0

    def read_by_workers(self, split: str) -> Dataset[Any]:
        """Returns what gives the workers of a split's loader their batches."""
        return self.sets[split]

    def _loader(self, split: str, sampler: EpochSampler, drop_last: bool) -> DataLoader[Batch]:
        workers = self.default_workers() if self.num_workers is None else self.num_workers
        return Loader(
            self.read_by_workers(split),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=keep_batch,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and self.sets[split].device.type == "cpu",
        )
