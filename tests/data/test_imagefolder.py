"""Folders of images: layouts, splits, what is in the way, and what evaluation sees."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score
from support.pictures import write_picture
from timm.data import create_transform
from torchvision.transforms import v2

from imgcls.augment.settings import Augment
from imgcls.config.build import build
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading.decode import decode
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.data.module import SPLITS
from imgcls.errors import UnreadableImage, UserError, one_line
from imgcls.spec import DataSpec

CLASSES = ("cat", "dog", "fox")


def data_of(root: Path, **arguments: Any) -> ImageFolder:
    settings = {
        "image_size": 24,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "num_workers": 0,
        "batch_size": 4,
    }
    return ImageFolder(root=str(root), **{**settings, **arguments})


def ready(root: Path, **arguments: Any) -> ImageFolder:
    data = data_of(root, **arguments)
    data.setup()
    return data


def names(data: ImageFolder, split: str) -> list[str]:
    return [data.sets[split].name(i) for i in range(len(data.sets[split]))]


def write_split(root: Path, split: str, count: int, classes: tuple[str, ...] = CLASSES) -> None:
    for label, name in enumerate(classes):
        for i in range(count):
            write_picture(root / split / name / f"{split}{i}.png", seed=100 * label + i)


def refused(root: Path, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        ready(root, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flat_folder_is_cut(folder: Path) -> None:
    data = ready(folder)
    assert data.spec.class_names == CLASSES and data.spec.num_classes == 3
    counts = {split: torch.bincount(data.sets[split].targets).tolist() for split in SPLITS}
    assert counts == {"train": [9] * 3, "val": [1] * 3, "test": [2] * 3}
    found = [name for split in SPLITS for name in names(data, split)]
    assert sorted(found) == sorted(str(path) for path in folder.glob("*/*.jpg"))
    assert {split: names(ready(folder, seed=7), split) for split in SPLITS} == {
        s: names(data, s) for s in SPLITS
    }


def test_targets_belong_to_their_folders(folder: Path) -> None:
    data = ready(folder)
    for split in SPLITS:
        labels = [CLASSES.index(Path(name).parent.name) for name in names(data, split)]
        assert labels == data.sets[split].targets.tolist()


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "val", "test"), ("training", "valid", "testing"), ("Train", "VALIDATION", "Test"),
        ("TRAINING", "Dev", "Eval"), ("train", "dev", "evaluation"),
    ],
)  # fmt: skip
def test_split_folders(tmp_path: Path, folders: tuple[str, str, str]) -> None:
    for split, count in zip(folders, (4, 2, 3), strict=True):
        write_split(tmp_path, split, count)
    data = ready(tmp_path)
    assert data.spec.class_names == CLASSES and [len(data.sets[split]) for split in SPLITS] == [12, 6, 9]
    for split, name in zip(SPLITS, folders, strict=True):
        assert {Path(path).parts[-3] for path in names(data, split)} == {name}


def test_what_lies_beside_the_splits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Folders of other names, of a split that is there already, and of one without class folders."""
    for split in ("train", "valid", "val", "extra"):
        write_split(tmp_path, split, 9)
    for i in range(3):
        write_picture(tmp_path / "test" / f"{i}.png", seed=i)
    data = ready(tmp_path)
    assert {split: Path(folder).name for split, folder in data.folders.items()} == {
        "train": "train",
        "val": "val",
    }
    line = f"{tmp_path} is read as the splits train and val; left out beside them: extra, test, valid"
    assert caplog.messages == [line]


def test_classes_with_the_names_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder is a split only where it holds class folders."""
    for root, classes in (("a", ("invalid", "valid")), ("b", ("bus", "test", "train"))):
        write_split(tmp_path, root, 9, classes)
        assert ready(tmp_path / root).spec.class_names == classes
    for split in ("train", "test"):
        write_split(tmp_path / "c", split, 9, ("plane", "train"))
    assert ready(tmp_path / "c").spec.class_names == ("plane", "train")
    assert caplog.messages == []


@pytest.mark.parametrize(
    "tree",
    [
        ("invalid/y", "valid/x"), ("bus/x", "car/x", "train/x"), ("bus/y", "car", "train/a", "train/b"),
        ("bus/a", "bus/b", "car/a", "car/b", "train/a", "train/b"), ("bus/x", "test/x", "train/x"),
    ],
)  # fmt: skip
def test_classes_with_the_names_of_splits_and_folders_in_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tree: tuple[str, ...]
) -> None:
    write_split(tmp_path, "set", 9, tree)
    data = ready(tmp_path / "set")
    assert data.spec.class_names == tuple(sorted({place.split("/")[0] for place in tree}))
    assert sum(len(data.sets[split]) for split in SPLITS) == 9 * len(tree)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}/set is read as one set without splits: ") and line.endswith(
        "classes, as are the folders beside"
    )


@pytest.mark.parametrize(
    "beside",
    [
        ("figures", "notes"),
        ("extra/cat", "extra/dog"),
        ("val_images/cat", "test_images/cat"),
        ("unlabelled",),
    ],
)
def test_a_train_folder_stays_a_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, beside: tuple[str, ...]
) -> None:
    """Beside a few pictures, one more folder, or folders that are called nearly as splits."""
    write_split(tmp_path, "train", 9)
    for place in beside:
        write_picture(tmp_path / place / "0.png")
    assert ready(tmp_path).spec.class_names == CLASSES
    assert "left out beside them: " + ", ".join(sorted({p.split("/")[0] for p in beside})) in caplog.text


@pytest.mark.parametrize(
    "classes", [("test_tube", "train_station"), ("Test-positive", "Train"), ("eval1", "eval2")]
)
def test_classes_that_begin_as_splits(tmp_path: Path, classes: tuple[str, ...]) -> None:
    write_split(tmp_path, "", 9, classes)
    assert ready(tmp_path).spec.class_names == classes


@pytest.mark.parametrize(
    "classes",
    [
        ("Training", "Testing"),
        ("train_images", "val_images", "test_images"),
        ("trainset", "Test-2"),
        ("train2017", "val2017"),
    ],
)
def test_splits_that_would_be_classes(tmp_path: Path, classes: tuple[str, ...]) -> None:
    write_split(tmp_path, "", 3, classes)
    assert "splits, no classes; expected root/train/<class>/…" in refused(tmp_path)


@pytest.mark.parametrize("missing", ["val", "test"])
def test_the_split_that_is_missing_is_cut_from_train(tmp_path: Path, missing: str) -> None:
    given = "test" if missing == "val" else "val"
    write_split(tmp_path, "train", 10)
    write_split(tmp_path, given, 2)
    data = ready(tmp_path, val_fraction=0.2, test_fraction=0.2)
    assert [len(data.sets[split]) for split in ("train", missing, given)] == [24, 6, 6]
    assert not set(names(data, "train")) & set(names(data, missing))
    assert all("/train/" in path for path in names(data, missing))


@pytest.mark.parametrize("there", [True, False])
def test_a_class_that_val_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture, there: bool) -> None:
    """Whether its folder is there or not; the others keep their labels."""
    write_split(tmp_path, "train", 9)
    write_split(tmp_path, "val", 2, classes=("cat", "fox"))
    if there:
        (tmp_path / "val" / "dog").mkdir()
    data = ready(tmp_path)
    assert data.sets["val"].targets.tolist() == [0, 0, 2, 2]
    assert {Path(name).parent.name for name in names(data, "val")} == {"cat", "fox"}
    assert any(
        line.startswith("the val split has no image of 1 of 3 classes (dog)") for line in caplog.messages
    )


def test_training_where_test_lacks_a_class(
    here: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is tested and reported; what is not there counts in the means only where it is predicted."""
    shutil.copytree(folder, "set/train")
    write_split(Path("set"), "Test", 6, classes=("cat", "fox"))
    arguments = [
        "data=imagefolder",
        "data.root=set",
        "data.image_size=16",
        "data.batch_size=8",
        "data.num_workers=0",
    ]
    here(
        "train", *arguments, "backbone=simple_cnn", "logger=csv", "trainer.max_epochs=1", "hydra.run.dir=run"
    )
    here("eval", "checkpoint=run", "hydra.run.dir=again")
    said = capsys.readouterr().out
    assert said.count("the test split has no image of 1 of 3 classes (dog)") == 2
    assert pd.read_csv("run/test/per_class.csv")["support"].tolist() == [6, 0, 6]
    table = pd.read_csv("run/test/predictions.csv")
    names = {name: label for label, name in enumerate(CLASSES)}
    measured = json.loads(Path("run/test/metrics.json").read_text())
    target, predicted = (table[column].map(names) for column in ("target", "prediction"))
    f1 = f1_score(target, predicted, average="macro", zero_division=0)
    assert (
        measured["test/f1"]
        == pytest.approx(f1)
        == json.loads(Path("again/metrics.json").read_text())["test/f1"]
    )


def test_other_data_is_read_with_the_bits_of_training(here: Callable[..., None], tmp_path: Path) -> None:
    for name, grey in (("dark", 600), ("light", 3400)):
        for i in range(20):
            path = tmp_path / "deep" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(-200, 200, (16, 16))
            Image.fromarray((grey + noise).astype(np.uint16)).save(path)
    data = ["data=imagefolder", "data.root=deep"]
    options = [
        "data.bits=12",
        "data.channels=1",
        "data.image_size=16",
        "data.batch_size=8",
        "data.num_workers=0",
    ]
    epochs = ["trainer.max_epochs=2", "hydra.run.dir=run"]
    here("train", *data, *options, "backbone=simple_cnn", "logger=csv", *epochs)
    for name, arguments in (("own", []), ("other", data), ("mine", [*data, "data.bits=16"])):
        here(
            "eval", "checkpoint=run", "split=test", "data.num_workers=0", *arguments, f"hydra.run.dir={name}"
        )
    own, other, mine = (
        json.loads(Path(name, "metrics.json").read_text())["test/loss"] for name in ("own", "other", "mine")
    )
    assert other == own != mine


def test_a_class_that_only_val_has(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 4)
    write_split(tmp_path, "val", 2, classes=(*CLASSES, "owl"))
    message = (
        f"{tmp_path}/val has the class 'owl', which {tmp_path}/train does not; expected the same classes"
    )
    assert refused(tmp_path) == message


def test_an_empty_class_folder(folder: Path) -> None:
    (folder / "ant").mkdir()
    (folder / "ant" / "notes.txt").write_text("no picture")
    assert refused(folder).startswith(f"{folder}/ant holds no image")


def test_too_few_images_to_cut_from(tmp_path: Path) -> None:
    write_split(tmp_path, "", 2)
    assert "the train split" in refused(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    message = refused(tmp_path / "nope")
    assert message.startswith(f"data.root={tmp_path}/nope: there is no such folder; expected root/<class>/")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"{tmp_path} has no class folders")


def test_splits_without_train(tmp_path: Path) -> None:
    write_split(tmp_path, "valid", 2)
    assert refused(tmp_path).startswith(f"{tmp_path} has valid but no train folder")


def test_means_that_fit_no_channels(folder: Path) -> None:
    assert "data.mean and data.std have 2 numbers for 3 channels" in refused(
        folder, mean=[0.5, 0.5], std=[0.2, 0.2]
    )


def test_an_interpolation_that_there_is_not(folder: Path) -> None:
    node = {"_target_": "imgcls.data.imagefolder.ImageFolder", "root": str(folder), "interpolation": "cubic"}
    with pytest.raises(
        UserError, match="data.interpolation=cubic: input should be 'nearest', 'bilinear' or 'bicubic'"
    ):
        build(node, "data")


def test_hidden_files_and_other_files_are_ignored(folder: Path) -> None:
    write_picture(folder / "cat" / "._00.jpg")
    write_picture(folder / ".thumbnails" / "00.jpg")
    (folder / "cat" / "notes.txt").write_text("no picture")
    (folder / "labels.csv").write_text("a,b")
    data = ready(folder)
    assert data.spec.class_names == CLASSES and sum(len(data.sets[split]) for split in SPLITS) == 36


def test_hidden_folders_within_a_class_are_ignored(folder: Path) -> None:
    write_picture(folder / "cat" / ".ipynb_checkpoints" / "00-checkpoint.jpg")
    data = ready(folder)
    assert sum(len(data.sets[split]) for split in SPLITS) == 36


def test_nested_folders_and_upper_case_suffixes(folder: Path) -> None:
    write_picture(folder / "cat" / "b" / "c" / "deep.PNG", seed=1)
    write_picture(folder / "cat" / "ü ä.webp", seed=2)
    data = ready(folder)
    found = [name for split in SPLITS for name in names(data, split)]
    assert len(found) == 38 and {str(folder / "cat/b/c/deep.PNG"), str(folder / "cat/ü ä.webp")} <= set(found)
    assert all(Path(name).is_file() for name in found)


def test_links_to_class_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name in CLASSES:
        (tmp_path / "links" / name).symlink_to(folder / name)
    assert len(ready(tmp_path / "links").sets["train"]) == 27


def test_means_follow_the_channels(folder: Path) -> None:
    assert list(data_of(folder, channels=1).spec.mean) == pytest.approx([0.4])
    assert data_of(folder, mean=[0.5], std=[0.1]).spec.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [16, 48])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_resizes_and_cuts_the_centre(
    folder: Path, channels: int, image_size: int, interpolation: str
) -> None:
    data = ready(
        folder, channels=channels, image_size=image_size, crop_ratio=0.8, interpolation=interpolation
    )
    mode = v2.InterpolationMode(interpolation)
    expected = v2.Compose(
        [v2.Resize(round(image_size / 0.8), mode, antialias=True), v2.CenterCrop(image_size)]
    )
    (images, _, indices, _), *_ = data.test_dataloader()
    assert images.shape == (4, channels, image_size, image_size) and images.dtype == torch.uint8
    for image, index in zip(images, indices.tolist(), strict=True):
        assert torch.equal(image, expected(decode(data.sets["test"].name(index), channels)))
        assert torch.equal(image, data.sets["test"].picture(index))


def test_the_centre_of_a_known_picture(tmp_path: Path) -> None:
    """Of a wide picture in three stripes, evaluation sees the middle one."""
    stripes = np.repeat(
        np.array([[[255, 0, 0]] * 32 + [[0, 255, 0]] * 32 + [[0, 0, 255]] * 32], np.uint8), 32, axis=0
    )
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(stripes).save(tmp_path / name / f"{i}.png")
    data = ready(tmp_path, image_size=28)
    seen = data.sets["val"].picture(0)[:, :, 1:-1].float().mean((1, 2))
    assert seen.tolist() == pytest.approx([0, 255, 0], abs=3)


def test_training_without_augmentation_is_as_evaluation(folder: Path) -> None:
    data = ready(folder)
    batch = next(iter(data.train_dataloader()))
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        assert torch.equal(image, data.sets["train"].picture(index))


def test_resized_crops_are_of_training_alone(folder: Path) -> None:
    data = ready(folder, augment=Augment(crop="resized"))
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    same = [
        torch.equal(im, data.sets["train"].picture(i))
        for im, i in zip(train.images, train.indices, strict=True)
    ]
    assert train.images.shape == (4, 3, 24, 24) and not any(same)
    assert all(
        torch.equal(im, data.sets["val"].picture(i)) for im, i in zip(val.images, val.indices, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_the_loader_with_one_line(folder: Path, workers: int) -> None:
    for path in folder.glob("fox/*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    data = ready(folder, num_workers=workers)
    with pytest.raises(UnreadableImage) as caught:
        list(data.train_dataloader())
    message = one_line(caught.value)
    assert (
        message.startswith(f"{folder}/fox/")
        and "can't be read as an image (" in message
        and "\n" not in message
    )


@pytest.mark.parametrize("ratio", [0.8, 0.875, 0.9, 0.95, 1.0])
def test_evaluation_sees_the_pixels_that_timm_sees(ratio: float) -> None:
    picture = torch.randint(0, 256, (3, 300, 260), dtype=torch.uint8)
    spec = DataSpec(CLASSES, 3, 224, (0.5,), (0.5,), interpolation="bilinear", crop_ratio=ratio)
    theirs = create_transform(224, crop_pct=ratio, interpolation="bilinear", use_prefetcher=True)
    resize, crop = theirs.transforms[:2]
    difference = evaluation_transform(spec)(picture).int() - crop(resize(picture)).int()
    assert int(difference.abs().max()) <= 1  # they round for themselves
