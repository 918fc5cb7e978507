"""Augmentation of one image: what can be an entry, how it is called, and what it draws."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.noise import as_bytes, noise, spec
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor, nn
from torchvision.transforms import v2

from imgcls.augment.batch import BatchAugment
from imgcls.augment.image import Entry, ImageTransform, ThreeAugment, Views, worker_transform
from imgcls.augment.settings import Augment
from imgcls.augment.timm import TimmRandAugment
from imgcls.data.digits import Digits
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.memory import MemoryImages
from imgcls.errors import UserError
from imgcls.seeding import seed_others

LEGACY = np.random.mtrand._rand  # the generator of np.random.rand and the like
V2 = "torchvision.transforms.v2."
FACTS: dict[str, Any] = {"image_size": 16, "mean": [0.5], "std": [0.2]}
RAND: dict[str, Any] = {"_target_": V2 + "RandAugment", "num_ops": 1}
VIEWS: dict[str, Any] = {"_target_": "imgcls.augment.image.Views", "count": 2}
JITTER: dict[str, Any] = {"_target_": V2 + "ColorJitter", "brightness": 0.5}


def steps(transform: Any) -> list[type]:
    """Returns the classes of what is applied, in order."""
    if not isinstance(transform, ImageTransform):
        return [] if transform is None else [type(transform)]
    first = [] if transform.first is None else [type(transform.first)]
    return first + [type(entry.call) for entry in transform.entries]


@pytest.mark.parametrize(
    ("settings", "image_size", "expected"),
    [
        ({}, 32, []),
        ({"crop": "padded"}, 32, []),
        ({"crop": "auto"}, 64, []),
        ({"crop": "auto"}, 65, [v2.RandomResizedCrop]),
        ({"crop": "resized"}, 32, [v2.RandomResizedCrop]),
        ({"image": {"policy": RAND}}, 32, [v2.RandAugment]),
        ({"image": [RAND, JITTER]}, 32, [v2.RandAugment, v2.ColorJitter]),
        ({"image": {"policy": None, "jitter": JITTER}}, 32, [v2.ColorJitter]),
        ({"image": {"policy": None}}, 32, []),
        ({"crop": "resized", "image": {"policy": RAND}}, 32, [v2.RandomResizedCrop, v2.RandAugment]),
    ],
)
def test_worker_transform(settings: dict[str, Any], image_size: int, expected: list[type]) -> None:
    augment, resize = Augment.read(settings), v2.Resize(8)
    assert steps(worker_transform(augment, spec(image_size))) == expected
    with_default = steps(worker_transform(augment, spec(image_size), resize))
    assert with_default == ([] if v2.RandomResizedCrop in expected else [v2.Resize]) + expected


def test_resized_crop_takes_the_settings() -> None:
    crop = worker_transform(Augment(crop="resized", scale=(0.5, 0.5), ratio=(1.0, 1.0)), spec(32))
    assert isinstance(crop, v2.RandomResizedCrop)
    assert (
        tuple(crop.size) == (32, 32) and tuple(crop.scale) == (0.5, 0.5) and tuple(crop.ratio) == (1.0, 1.0)
    )
    assert crop(noise(3, 80, 50)).shape == (3, 32, 32)


def test_auto_crops_pad_or_resize_and_never_both() -> None:
    for image_size in (32, 64, 65, 224):
        augment, facts = Augment(crop="auto"), spec(image_size)
        resized = worker_transform(augment, facts) is not None
        assert resized == (image_size > 64) and (BatchAugment(augment, facts).padding > 0) != resized


POLICIES: dict[str, Callable[[], nn.Module]] = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
    "three_augment": ThreeAugment,
}


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_policies(name: str, channels: int, size: int) -> None:
    """One picture, 40 times: each gets a draw of its own, and the same one when it is asked for again."""
    pictures = noise(1, channels, size, size).expand(40, -1, -1, -1)
    dataset = MemoryImages(pictures, torch.zeros(40, dtype=torch.int64))
    dataset.transform = POLICIES[name]()
    assert_keyed(dataset, pictures)


def assert_keyed(dataset: MemoryImages, pictures: Tensor) -> None:
    keys = list(range(40))
    first = dataset.__getitems__(keys).images
    assert first.shape == pictures.shape and first.dtype == torch.uint8
    assert len({as_bytes(image) for image in first}) > 10
    torch.rand(3)
    random.random()
    LEGACY.random()
    assert torch.equal(dataset.__getitems__(keys[::-1]).images.flip(0), first)
    assert not torch.equal(dataset.__getitems__([key + 40 for key in keys]).images, first)  # the next epoch
    assert torch.equal(dataset.picture(0), pictures[0])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"_target_": V2 + "RandAugmen"}, "did you mean 'RandAugment'?"),
        ({**RAND, "magnitud": 3}, "augment.image.policy.magnitud: "),
        ({**RAND, "magnitude": "x"}, "augment.image.policy.magnitude=x: "),
    ],
)
def test_wrong_policies(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        worker_transform(Augment.read({"image": {"policy": policy}}), spec())
    assert message in str(caught.value)


# views


@pytest.mark.parametrize("workers", [0, 2])
def test_each_view_has_draws_of_its_own(folder: Path, workers: int) -> None:
    entries = {"views": VIEWS, "crop": {"_target_": V2 + "RandomResizedCrop", "size": 16}, "jitter": JITTER}
    augment, given = Augment.read({"crop": "own", "image": entries}), {**FACTS, "batch_size": 4}
    data = ImageFolder(root=str(folder), augment=augment, num_workers=workers, **given)
    data.setup()
    assert data.views == 2
    batches = list(data.train_dataloader())
    again = list(data.train_dataloader())
    for batch, other in zip(batches, again, strict=True):
        assert batch.images.shape == (4, 2, 3, 16, 16) and batch.images.dtype == torch.uint8
        assert batch.targets.shape == batch.indices.shape == (4,)
        assert torch.equal(batch.images, other.images)
        assert all(not torch.equal(one, two) for one, two in batch.images)
    assert next(iter(data.val_dataloader())).images.ndim == 4  # evaluation is never augmented
    assert data.sets["train"].picture(0).shape == (3, 16, 16)


def test_views_are_cropped_and_normalised_each_by_itself() -> None:
    images = noise(50, 2, 3, 16, 16)
    augment = BatchAugment(Augment(crop="padded", flip=0.5, erase=1.0), spec(16))
    torch.manual_seed(0)
    out = augment.pixels(images)
    torch.manual_seed(0)
    assert torch.equal(out.flatten(0, 1), augment.pixels(images.flatten(0, 1)))
    same = augment.pixels(images[:, :1].expand(-1, 2, -1, -1, -1))
    assert sum(not torch.equal(one, two) for one, two in same) > 40
    erased, targets = augment.mix(out.float(), torch.arange(50))
    assert erased.shape == images.shape and torch.equal(targets, torch.arange(50))
    zeros = erased.eq(0).all(2)
    assert not torch.equal(zeros[:, 0], zeros[:, 1])
    shown, _ = augment.shown(images, torch.arange(50))
    assert shown.shape == images.shape and shown.dtype == torch.uint8


# entries of other libraries


class Flip:
    """Called as albumentations' transforms are, with numpy's or Python's generator or one of its own."""

    def __init__(self, draws: str = "numpy", p: float = 0.5) -> None:
        self.draws, self.p, self.generator = draws, p, np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, *args: Any, **data: Any) -> dict[str, Any]:
        if args:
            raise KeyError("You have to pass data to augmentations as named arguments")
        image = data["image"]
        assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
        generators: dict[str, Any] = {"numpy": LEGACY, "random": random, "own": self.generator}
        draw = generators[self.draws].random
        image = image[:, ::-1] if draw() < self.p else image
        shift = int(256 * draw())
        moved = image + np.uint8(shift)
        return {"image": moved[..., 0] if moved.shape[-1] == 1 else moved}  # as OpenCV drops the axis


def with_pillow(picture: Image.Image) -> Image.Image:
    shifted = ImageOps.solarize(picture, int(255 * random.random()))
    return ImageOps.mirror(shifted) if random.random() < 0.5 else shifted


def sometimes_with_pillow(picture: Image.Image) -> Image.Image:
    return ImageOps.mirror(picture) if random.random() < 0.3 else picture


HERE = "test_image."


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "test_image", __import__("sys").modules[__name__])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "node",
    [
        {"_target_": HERE + "Flip", "draws": "numpy"},
        {"_target_": HERE + "Flip", "draws": "random"},
        {"_target_": HERE + "Flip", "draws": "own"},
        {"_target_": HERE + "with_pillow", "_partial_": True},
        {"_target_": V2 + "Lambda", "lambd": {"_target_": HERE + "shifted", "_partial_": True}, "_args_": []},
    ],
)
def test_draws_of_other_libraries_are_keyed(node: dict[str, Any], channels: int) -> None:
    transform = worker_transform(Augment.read({"image": [node]}), spec(16, channels))
    pictures = noise(1, channels, 16, 16).expand(40, -1, -1, -1)
    dataset = MemoryImages(pictures, torch.zeros(40, dtype=torch.int64))
    dataset.transform = transform
    assert_keyed(dataset, pictures)


@pytest.mark.parametrize("channels", [1, 3])
def test_timms_randaugment_is_keyed_and_timms_own(channels: int) -> None:
    node = {"_target_": "imgcls.augment.timm.TimmRandAugment", "config": "rand-m7-mstd0.5-inc1", "size": 16}
    pictures = noise(1, channels, 16, 16).expand(40, -1, -1, -1)
    dataset = MemoryImages(pictures, torch.zeros(40, dtype=torch.int64))
    dataset.transform = worker_transform(Augment.read({"image": [node]}), spec(16, channels))
    assert_keyed(dataset, pictures)
    ours = TimmRandAugment("rand-m9-mstd0.5-inc1", 100, [0.5, 0.25, 1.0], "bilinear")
    how = {"translate_const": 45, "img_mean": (128, 64, 255), "interpolation": 2}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", how)
    picture = v2.functional.to_pil_image(noise(1, 3, 100, 100)[0])
    for seed in range(200):
        seen = []
        for call in (ours, theirs):
            seed_others(seed)
            seen.append(np.asarray(call(picture)))
        assert (seen[0] == seen[1]).all()


def shifted(image: Tensor) -> Tensor:
    return image + random.randrange(256)


def test_two_entries_with_generators_of_their_own_draw_apart() -> None:
    node = {"_target_": HERE + "Flip", "draws": "own"}
    transform = worker_transform(Augment(image=[node, node]), spec())
    assert isinstance(transform, ImageTransform)
    transform(noise(3, 16, 16))
    one, other = (call.generator.random() for call in transform.own_generators)
    assert one != other


def test_a_function_that_seldom_does_something_is_tried_as_well() -> None:
    node = {"_target_": HERE + "sometimes_with_pillow", "_partial_": True}
    transform = worker_transform(Augment(image=[node]), spec())
    assert isinstance(transform, ImageTransform)
    torch.manual_seed(1)
    assert transform(noise(3, 16, 16)).shape == (3, 16, 16)


def test_torchvisions_transforms_leave_the_other_generators_alone() -> None:
    transform = worker_transform(Augment(image=[RAND]), spec())
    assert isinstance(transform, ImageTransform) and not transform.draws_elsewhere
    random.seed(3)
    LEGACY.seed(3)
    transform(noise(3, 16, 16))
    assert random.random() == random.Random(3).random()
    assert LEGACY.random() == np.random.RandomState(3).random()


def test_the_trial_changes_no_draws() -> None:
    torch.manual_seed(5)
    random.seed(5)
    worker_transform(Augment(image=[{"_target_": HERE + "Flip"}, RAND]), spec())
    drawn = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(drawn[0], torch.rand(3)) and drawn[1] == random.random()


def as_list(image: Tensor) -> list[Tensor]:
    return [image, image.flip(-1), image]


def test_a_list_of_images_is_views() -> None:
    node = {"_target_": HERE + "as_list", "_partial_": True}
    transform = worker_transform(Augment(image=[node, JITTER]), spec())
    assert isinstance(transform, ImageTransform) and transform.views == 3
    assert transform(noise(3, 16, 16)).shape == (3, 3, 16, 16)
    assert Views(4)(noise(3, 16, 16)).shape == (4, 3, 16, 16)


def test_own_crop_gets_images_as_they_are_stored(folder: Path) -> None:
    resize = {"_target_": V2 + "Resize", "size": [16, 16]}
    whole = Augment(crop="own", image={"resize": resize})
    data = ImageFolder(root=str(folder), augment=whole, **FACTS, batch_size=4, shuffle=False)
    data.setup()
    train = data.sets["train"]
    expected = v2.Resize([16, 16])(train.read(0))  # type: ignore[attr-defined]
    assert torch.equal(train.__getitems__([0]).images[0], expected)


WRONG: dict[str, tuple[list[Any], str]] = {
    "a float": ([{"_target_": V2 + "ToDtype", "dtype": torch.float32}], "0: torchvision.transforms.v2."
                "ToDtype returned float32 (3, 16, 16); expected uint8 (C, H, W), or (V, C, H, W) of V views"),
    "too small": ([{"_target_": V2 + "RandomCrop", "size": 12}, RAND], "0: torchvision.transforms.v2."
                  "RandomCrop returned uint8 (3, 12, 12); expected uint8 (3, 16, 16), or views of it"),
    "grey": ([RAND, {"_target_": V2 + "Grayscale"}], "1: torchvision.transforms.v2.Grayscale returned uint8 "
             "(1, 16, 16); expected uint8 (3, 16, 16)"),
    "views of views": ([VIEWS, VIEWS], "1: imgcls.augment.image.Views returned uint8 (2, 2, 3, 16, 16); "
                       "expected uint8 (C, H, W)"),
    "no image": ([{"_target_": "torch.nn.BCELoss"}], "0: torch.nn.BCELoss can't be called with an image (a "
                 "tensor: "),
    "no transform": ([{"_target_": "torch.device", "_args_": ["cpu"]}], "0._target_=torch.device: made a "),
    "a function": ([{"_target_": HERE + "shifted"}], "0: test_image.shifted can't be called so: missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_line_for_what_is_no_entry(case: str) -> None:
    entries, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        worker_transform(Augment.read({"image": entries}), spec())
    assert str(caught.value).startswith(f"augment.image.{message}") and "\n" not in str(caught.value)


def test_own_crop_must_crop() -> None:
    with pytest.raises(UserError, match="no entry of augment.image crops"):
        worker_transform(Augment(crop="own"), spec())
    with pytest.raises(UserError, match=r"RandAugment returned uint8 \(3, 25, 32\); expected"):
        worker_transform(Augment(crop="own", image=[RAND]), spec())


def test_in_memory_data(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Digits(augment=Augment(image=[VIEWS, {"_target_": HERE + "Flip"}]), batch_size=8)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (8, 2, 1, 8, 8) and data.views == 2


class Darkened:
    """Writes into the image that it is given."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.sub_(torch.randint(1, 100, (1,)).byte())


def test_views_do_not_share_what_is_written_into() -> None:
    darkened = {"_target_": f"{__name__}.Darkened"}
    transform = worker_transform(Augment(image=[VIEWS, darkened]), spec(3, 16))
    assert transform is not None
    torch.manual_seed(0)
    first, second = transform(torch.full((3, 16, 16), 200, dtype=torch.uint8))
    assert not torch.equal(first, second)


def test_transforms_of_torchvision_that_draw_elsewhere_are_keyed() -> None:
    """Those of its first generation draw from Python's generator, too."""
    choice = {"_target_": "torchvision.transforms.RandomChoice", "transforms": [JITTER, RAND]}
    assert Entry(choice, "augment.image.choice").draws_elsewhere
    assert not Entry(RAND, "augment.image.policy").draws_elsewhere


def test_no_view_is_no_number_of_views() -> None:
    with pytest.raises(UserError, match="greater than or equal to 1"):
        Entry({"_target_": "imgcls.augment.image.Views", "count": 0}, "augment.image.views")


def test_a_resized_crop_of_a_rectangle_has_its_proportions() -> None:
    """The content is stretched by `ratio`, as that of a square."""
    facts = replace(spec(16), image_size=(16, 32), train_size=(12, 36))
    crop = worker_transform(Augment(crop="resized", ratio=(1.0, 1.0), scale=(0.1, 0.1)), facts)
    assert isinstance(crop, v2.RandomResizedCrop)
    assert crop.size == (12, 36) and tuple(crop.ratio) == (3.0, 3.0)
    rows = torch.arange(200)[:, None].expand(3, 200, 200).byte()
    torch.manual_seed(0)
    found = crop(rows).float()
    stretched = (found[0, -1, 0] - found[0, 0, 0]) / 11  # rows of the picture in a row of the crop
    columns = crop(rows.transpose(1, 2)).float()
    assert (columns[0, 0, -1] - columns[0, 0, 0]) / 35 == pytest.approx(stretched.item(), rel=0.1)


def test_own_crops_of_a_rectangle() -> None:
    facts = replace(spec(16), image_size=(16, 24))
    own: dict[str, Any] = {"crop": {"_target_": V2 + "RandomCrop", "size": [16, 24]}}
    found = worker_transform(Augment(crop="own", image=own), facts)
    assert found is not None and found(noise(3, 40, 50)).shape == (3, 16, 24)
    with pytest.raises(UserError, match=r"returned uint8 \(3, 24, 16\); expected uint8 \(3, 16, 24\)"):
        worker_transform(Augment(crop="own", image={"crop": own["crop"] | {"size": [24, 16]}}), facts)
