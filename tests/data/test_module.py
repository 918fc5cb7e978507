"""Splits, the order of samples, ranks, and batches that do not depend on who fetches them."""

import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from imgcls.augment.settings import Augment
from imgcls.config.build import build
from imgcls.data.batch import Batch, EpochSampler
from imgcls.data.digits import Digits
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading.cuts import stratified
from imgcls.data.memory import MemoryImages
from imgcls.data.module import SPLITS, ImageDataModule, check_targets, name_absent
from imgcls.errors import UserError


def ready(**arguments: Any) -> Digits:
    data = Digits(**arguments)
    data.setup()
    return data


def stored(data: ImageDataModule, split: str) -> Tensor:
    images = data.sets[split]
    assert isinstance(images, MemoryImages)
    return images.stored


# stratified


def test_stratified_takes_the_same_share_of_each_class() -> None:
    targets = np.repeat([0, 1, 2], [100, 40, 10])
    chosen = stratified(np.random.default_rng(1).permutation(targets), 0.1)
    again = stratified(np.random.default_rng(1).permutation(targets), 0.1)
    labels = np.random.default_rng(1).permutation(targets)[chosen]
    assert np.bincount(labels).tolist() == [10, 4, 1]
    assert len(set(chosen.tolist())) == len(chosen) and (np.diff(chosen) > 0).all()
    assert chosen.tolist() == again.tolist()
    assert chosen.tolist() != list(range(len(chosen)))


@pytest.mark.parametrize(
    ("count", "fraction", "taken"),
    [
        (1, 0.1, 1),
        (2, 0.1, 1),
        (2, 0.9, 1),
        (3, 0.01, 1),
        (3, 0.99, 2),
        (10, 0.5, 5),
        (1, 1.0, 1),
        (7, 1.0, 7),
    ],
)
def test_stratified_of_small_classes(count: int, fraction: float, taken: int) -> None:
    """At least one is taken; one stays where there are two."""
    targets = np.repeat([4, 7], [count, 50])
    assert (targets[stratified(targets, fraction)] == 4).sum() == taken


def test_stratified_differs_by_seed() -> None:
    targets = np.zeros(100, int)
    assert stratified(targets, 0.3, seed=0).tolist() != stratified(targets, 0.3, seed=1).tolist()


# EpochSampler


def epochs(sampler: EpochSampler, *numbers: int) -> list[list[int]]:
    out = []
    for number in numbers:
        sampler.set_epoch(number)
        out.append(list(sampler))
    return out


def test_each_index_once_in_each_epoch_in_another_order() -> None:
    first, second = epochs(EpochSampler(50, seed=3, shuffle=True, training=True), 0, 1)
    assert sorted(first) == list(range(50)) and sorted(second) == list(
        range(50, 100)
    )  # a key holds the epoch
    assert first != [key - 50 for key in second]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    once = epochs(EpochSampler(50, seed=3, shuffle=True, training=True), 0, 1, 2)
    torch.rand(5)
    assert epochs(EpochSampler(50, seed=3, shuffle=True, training=True), 2, 0) == [once[2], once[0]]
    assert epochs(EpochSampler(50, seed=4, shuffle=True, training=True), 0) != [once[0]]


def test_no_shuffle_is_the_same_order_in_each_epoch() -> None:
    """But not that of the files, which are sorted by class."""
    first, third = epochs(EpochSampler(50, seed=3, shuffle=False, training=True), 0, 2)
    assert third == [key + 100 for key in first]
    assert sorted(first) == list(range(50)) != first
    assert epochs(EpochSampler(5, seed=3, shuffle=False, training=False), 1) == [[0, 1, 2, 3, 4]]


def ranks(monkeypatch: pytest.MonkeyPatch, count: int, sampler: EpochSampler) -> list[list[int]]:
    """Returns the keys that each of `count` processes would get."""
    out = []
    for rank in range(count):
        with monkeypatch.context() as patched:
            patched.setattr(distributed, "is_initialized", lambda: True)
            patched.setattr(distributed, "get_world_size", lambda: count)
            patched.setattr(distributed, "get_rank", lambda rank=rank: rank)
            out.append(list(sampler))
            assert len(out[-1]) == len(sampler)
    return out


@pytest.mark.parametrize(("length", "count"), [(12, 3), (13, 3), (14, 3), (3, 2), (7, 4)])
def test_ranks_in_training_share_no_sample(monkeypatch: pytest.MonkeyPatch, length: int, count: int) -> None:
    sampler = EpochSampler(length, seed=0, shuffle=True, training=True)
    keys = ranks(monkeypatch, count, sampler)
    together = list(chain(*keys))
    assert {len(own) for own in keys} == {length // count}
    assert len(set(together)) == len(together) and set(together) <= set(range(length))
    assert sorted(together) == sorted(list(sampler)[: len(together)])


def test_another_part_is_left_out_in_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = EpochSampler(10, seed=0, shuffle=True, training=True)
    seen: set[int] = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen |= {key % 10 for key in chain(*ranks(monkeypatch, 3, sampler))}
    assert seen == set(range(10))


# repeated augmentation


def repeating(length: int, repeats: int, shuffle: bool = True) -> EpochSampler:
    return EpochSampler(length, seed=3, shuffle=shuffle, training=True, repeats=repeats)


def test_without_repeats_order_and_keys_are_these() -> None:
    """Recorded before there were repeats: a run must be the same again."""
    assert epochs(repeating(7, 1), 0, 4) == [[6, 1, 3, 0, 4, 5, 2], [31, 29, 33, 28, 34, 32, 30]]


@pytest.mark.parametrize(("length", "repeats"), [(12, 3), (13, 3), (14, 3), (10, 4), (5, 5), (3, 7)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_with_repeats(length: int, repeats: int, shuffle: bool) -> None:
    """As long as without, each sample so often but the last, and as many epochs see all."""
    seen: list[int] = []
    for epoch, keys in enumerate(epochs(repeating(length, repeats, shuffle), *range(2 * repeats))):
        assert len(keys) == len(set(keys)) == length
        rounds, index = zip(*(divmod(key, length) for key in keys), strict=True)
        samples = list(dict.fromkeys(index))
        assert len(samples) == -(-length // repeats)
        assert [index.count(sample) for sample in samples[:-1]] == [repeats] * (len(samples) - 1)
        assert index == tuple(s for s in samples for _ in range(repeats))[:length]  # copies side by side
        assert rounds == tuple(epoch * repeats + i % repeats for i in range(length))
        seen += keys
        if epoch + 1 == repeats:
            assert {key % length for key in seen} == set(range(length))
    assert len(set(seen)) == len(seen)  # no key, and so no draw, comes twice


@pytest.mark.parametrize(
    ("length", "count", "repeats"), [(24, 4, 3), (26, 4, 3), (25, 2, 2), (24, 2, 4), (3, 2, 3)]
)
def test_copies_go_to_different_ranks(
    monkeypatch: pytest.MonkeyPatch, length: int, count: int, repeats: int
) -> None:
    sampler = repeating(length, repeats)
    sampler.set_epoch(2)
    keys = ranks(monkeypatch, count, sampler)
    together = list(chain(*keys))
    assert {len(own) for own in keys} == {length // count} and len(set(together)) == len(together)
    assert set(together) <= set(sampler)
    most = -(-repeats // count)  # where there are more copies than ranks
    for own in keys:
        index = [key % length for key in own]
        assert max(index.count(i) for i in index) <= most


def test_repeats_of_the_datamodule(folder: Path) -> None:
    """Copies of a sample lie side by side in a batch and are augmented each with draws of its own."""
    data = ImageFolder(
        root=str(folder), image_size=24, mean=[0.5], std=[0.5], batch_size=6, num_workers=2, repeats=3,
        augment=Augment(crop="resized"),
    )  # fmt: skip
    data.setup()
    batches = list(data.train_dataloader())
    assert len(batches) == data.batches_per_epoch(1) == 4  # 27 images, as without repeats
    for images, targets, indices, _ in batches:
        copies, same = indices.view(2, 3), targets.view(2, 3)
        assert (
            (copies == copies[:, :1]).all() and (same == same[:, :1]).all() and copies[0, 0] != copies[1, 0]
        )
        assert len(set(digest(images))) == 6
    assert len(set(torch.cat([batch.indices for batch in batches]).tolist())) == 8
    assert torch.cat([batch.indices for batch in data.val_dataloader()]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("length", "count"), [(12, 3), (13, 3), (14, 3), (3, 2), (2, 4)])
def test_ranks_in_evaluation_are_padded(monkeypatch: pytest.MonkeyPatch, length: int, count: int) -> None:
    sampler = EpochSampler(length, seed=0, shuffle=False, training=False)
    sampler.set_epoch(5)
    keys = ranks(monkeypatch, count, sampler)
    together = list(chain(*keys))
    assert {len(own) for own in keys} == {-(-length // count)}
    assert sorted(key for key in together if key >= 0) == list(range(length))
    assert together.count(-1) == len(together) - length


# datasets


def test_padding_is_not_valid() -> None:
    dataset = ready().sets["val"]
    batch = dataset.__getitems__([2, -1, -1])
    assert batch.valid.tolist() == [True, False, False] and batch.targets[0] == dataset.targets[2]
    assert batch.indices.tolist() == [2, 0, 0] and batch.images.shape == (3, 1, 8, 8)


def test_a_key_holds_epoch_and_index() -> None:
    dataset = ready(seed=5).sets["train"]
    length = len(dataset)
    first, later = dataset.__getitems__([3, 9]), dataset.__getitems__([3 + 4 * length, 9 + 4 * length])
    assert first.indices.tolist() == later.indices.tolist() == [3, 9]
    assert torch.equal(first.images, later.images) and torch.equal(first.targets, later.targets)
    assert dataset.sample_seed(3) != dataset.sample_seed(3 + length)
    assert len({dataset.sample_seed(key) for key in range(1000)}) == 1000
    assert dataset.sample_seed(3) != ready(seed=6).sets["train"].sample_seed(3)
    assert dataset[3].indices.tolist() == [3]


def digest(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


@pytest.mark.parametrize("arguments", [{}, {"val_fraction": 0.3, "test_fraction": 0.5}, {"fraction": 0.5}])
def test_splits_never_overlap(arguments: dict[str, float]) -> None:
    data = ready(**arguments)
    pictures = {split: digest(stored(data, split)) for split in SPLITS}
    everything = list(chain(*pictures.values()))
    assert len(set(everything)) == len(everything) and min(map(len, pictures.values())) > 100
    assert len(everything) == 1797 or "fraction" in arguments


def test_splits_are_stratified_and_the_same_for_every_seed() -> None:
    one, other = ready(seed=1), ready(seed=2)
    for split, share in (("train", 0.72), ("val", 0.08), ("test", 0.2)):
        assert torch.equal(stored(one, split), stored(other, split))
        assert len(one.sets[split]) == pytest.approx(1797 * share, abs=6)
        counts = torch.bincount(one.sets[split].targets, minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.max() + 1


def test_val_fraction_does_not_move_the_test_split() -> None:
    assert torch.equal(stored(ready(val_fraction=0.4), "test"), stored(ready(), "test"))


def test_fraction_is_stratified_and_of_train_alone() -> None:
    whole, part = ready(), ready(fraction=0.1)
    for split in ("val", "test"):
        assert torch.equal(stored(whole, split), stored(part, split))
    assert set(digest(stored(part, "train"))) < set(digest(stored(whole, "train")))
    assert part.class_counts() == [round(0.1 * count) for count in whole.class_counts()]


def test_setup_a_second_time_keeps_the_splits() -> None:
    data = ready()
    before = data.sets
    data.setup("fit")
    assert data.sets is before


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "the val split is empty; give it images, or a larger share of them"),
        ([0, 1, 3], "the val split has labels from 0 to 3; expected 0 to 2, one for each of the 3 classes"),
        ([-1, 1, 2], "the val split has labels from -1 to 2; expected 0 to 2, one for each of the 3 classes"),
    ],
)
def test_check_targets(targets: list[int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_targets(torch.tensor(targets, dtype=torch.int64), ("cat", "dog", "fox"), "val")
    assert str(caught.value) == message


def test_classes_without_an_image(caplog: pytest.LogCaptureFixture) -> None:
    """Train must have all; of another split they are named, five at the most."""
    targets, names = torch.tensor([0]), tuple("01234567")
    absent = r"no image of 7 of 8 classes \(1, 2, 3, 4, 5, …\)"
    with pytest.raises(
        UserError, match=f"the train split has {absent}; give each class an image to train on"
    ):
        check_targets(targets, names, "train")
    check_targets(targets, names, "val")
    name_absent(targets, names, "val")
    name_absent(torch.arange(8), names, "test")
    (line,) = caplog.messages
    assert re.match(f"the val split has {absent}; such a class counts", line)


# the datamodule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0: input should be greater than or equal to 1"),
        ({"batch_size": True}, "data.batch_size=True: input should be a valid integer"),
        ({"repeats": 0}, "data.repeats=0: input should be greater than or equal to 1"),
        ({"repeats": True}, "data.repeats=True: input should be a valid integer"),
        ({"num_workers": -1}, "data.num_workers=-1: input should be greater than or equal to 0"),
        ({"fraction": 0.0}, "data.fraction=0.0: input should be greater than 0"),
        ({"fraction": 1.5}, "data.fraction=1.5: input should be less than or equal to 1"),
        ({"val_fraction": -0.1}, "data.val_fraction=-0.1: input should be greater than or equal to 0"),
        ({"val_fraction": 0.95}, "data.val_fraction=0.95: input should be less than or equal to 0.9"),
        ({"test_fraction": 0.0}, "data.test_fraction=0.0: input should be greater than 0"),
        ({"folds": 1, "fold": 0}, "data.folds=1: input should be greater than or equal to 2"),
        ({"folds": 3, "fold": -1}, "data.fold=-1: input should be greater than or equal to 0"),
        (
            {"folds": 3, "fold": 3},
            "data.folds=3 data.fold=3: expected 2 folds or more, and a fold from 0 to folds - 1",
        ),
        ({"fold": 1}, "data.folds=None data.fold=1: expected 2 folds or more"),
        ({"image_size": 0}, "data.image_size=0: expected 1 pixel or more, or [height,width]"),
        ({"crop_ratio": 1.1}, "data.crop_ratio=1.1: input should be less than or equal to 1"),
        ({"std": [0.0]}, "data.std=[0.0]: input should be greater than 0"),
        ({"std": [-0.1]}, "data.std=[-0.1]: input should be greater than 0"),
        ({"std": []}, "data.std=[]: list should have at least 1 item"),
        ({"mean": []}, "data.mean=[]: list should have at least 1 item"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build({"_target_": "imgcls.data.digits.Digits", **arguments}, "data")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["imagefolder.ImageFolder"])
def test_an_empty_root(name: str) -> None:
    """It would be the working directory."""
    with pytest.raises(UserError, match="data.root=: string should have at least 1 character"):
        build({"_target_": f"imgcls.data.{name}", "root": ""}, "data")


def test_batches_of_an_epoch() -> None:
    data = ready(batch_size=100)
    batches = list(data.train_dataloader())
    length = len(data.sets["train"])
    assert len(batches) == data.batches_per_epoch(1) == length // 100  # the last, smaller one is dropped
    assert all(
        batch.images.shape == (100, 1, 8, 8) and batch.images.dtype == torch.uint8 for batch in batches
    )
    assert len(set(torch.cat([batch.indices for batch in batches]).tolist())) == 100 * len(batches)
    assert data.batches_per_epoch(3) == length // 3 // 100
    assert sum(data.class_counts()) == length


def test_a_batch_larger_than_the_set_is_kept() -> None:
    data = ready(batch_size=5000)
    (batch,) = data.train_dataloader()
    assert len(batch.targets) == len(data.sets["train"]) and data.batches_per_epoch(1) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_each_sample_once_in_order(split: str) -> None:
    data = ready(batch_size=64)
    batches = list(data.val_dataloader() if split == "val" else data.test_dataloader())
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(len(data.sets[split])))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), data.sets[split].targets)
    assert torch.equal(torch.cat([batch.images for batch in batches]), stored(data, split))


def two_epochs(folder: Path, workers: int, seed: int = 0) -> list[Batch]:
    policy = {"_target_": "torchvision.transforms.v2.RandAugment"}
    data = ImageFolder(
        root=str(folder), image_size=24, mean=[0.5], std=[0.5], batch_size=5, num_workers=workers, seed=seed,
        augment=Augment(crop="resized", image={"policy": policy}),
    )  # fmt: skip
    data.setup()
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    out: list[Batch] = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        out += list(loader)
    return out


def test_draws_do_not_depend_on_the_workers(folder: Path) -> None:
    alone, shared = two_epochs(folder, 0), two_epochs(folder, 2)
    assert len(alone) == len(shared) == 10  # 27 images in batches of 5, twice
    for own, other in zip(alone, shared, strict=True):
        assert torch.equal(own.indices, other.indices)
        assert torch.equal(own.targets, other.targets)
        assert torch.equal(own.images, other.images)


def test_draws_differ_by_epoch_and_seed(folder: Path) -> None:
    """The same sample, looked up in two epochs and under another seed."""

    def of_sample_3(batches: list[Batch]) -> list[Tensor]:
        return [
            image for batch in batches for image, i in zip(batch.images, batch.indices, strict=True) if i == 3
        ]

    runs = of_sample_3(two_epochs(folder, 0)) + of_sample_3(two_epochs(folder, 0, seed=1))
    assert len(runs) >= 3
    assert not any(torch.equal(runs[i], runs[j]) for i in range(len(runs)) for j in range(i))
