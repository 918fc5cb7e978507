"""ImageNet in all layouts that people have, by a made set of 30 classes, from the command line."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
from support.checkpoints import write_checkpoint
from support.pictures import write_picture

from imgcls.data import imagenet_labels as labels
from imgcls.report.classification import ClassificationReport
from imgcls.spec import DataSpec

WNIDS = labels.wordnet_ids()[::33][:30]
QUICK = ("data.num_workers=0", "trainer.accelerator=cpu", "data=imagenet", "hydra.run.dir=tested")
TRAIN = (
    "train", "data=imagenet", "trainer=cpu", "logger=csv", "data.image_size=16", "data.num_workers=0",
    "data.val_fraction=0.5", "trainer.max_epochs=1", "data.batch_size=30", "hydra.run.dir=trained",
)  # fmt: skip
IMAGES = {labels.IMAGE.format(i + 1) + ".JPEG": WNIDS[7 * i % 30] for i in range(30)}  # and their classes


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 30 classes: train/<WordNet id>, val/<WordNet id>, and those of val in one folder."""
    root = tmp_path_factory.mktemp("sets")
    for k, wnid in enumerate(WNIDS):
        for i in range(2):
            write_picture(root / "train" / wnid / f"{wnid}_{i}.JPEG", seed=2 * k + i, size=(20, 16))
    for i, (name, wnid) in enumerate(IMAGES.items()):
        write_picture(root / "flat" / name, seed=1000 + i, size=(20, 16))
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "flat" / name, root / "val" / wnid)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A network of the 30 classes."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names = tuple(labels.class_words()[wnid] for wnid in WNIDS)
        spec = DataSpec(names, 3, 16, (0.5,), (0.2,), crop_ratio=0.8)
        yield write_checkpoint(folder / "net.ckpt", spec, "backbone.width=4")


def targets_in(folder: Path = Path("tested")) -> dict[str, str]:
    """Returns the target of each image that was tested, by its file name."""
    table = pd.read_csv(folder / "predictions.csv")
    return {Path(name).name: target for name, target in zip(table["name"], table["target"], strict=True)}


@pytest.fixture(autouse=True)
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassificationReport, "draw", lambda *_: None)


EXPECTED = {name: labels.class_words()[wnid] for name, wnid in IMAGES.items()}


def link(root: Path, **parts: Path) -> Path:
    for name, part in parts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(part)
    return root


def test_folders_of_train_and_val(sets: Path, train: Callable[..., Any]) -> None:
    train(*TRAIN[1:], f"data.root={sets}")
    assert targets_in(Path("trained/test")) == EXPECTED


def test_val_alone(sets: Path, checkpoint: Path, here: Callable[..., None], said: Callable[..., str]) -> None:
    root = link(Path("root").absolute(), val=sets / "val")
    here("eval", f"checkpoint={checkpoint}", f"data.root={root}", *QUICK)
    assert targets_in() == EXPECTED
    lacks = f"{root} has no folder train and no ILSVRC2012_img_train.tar, and training needs one"
    assert lacks in said(*TRAIN, f"data.root={root}")
    assert lacks in said("pack", "data=imagenet", f"data.root={root}", "out=packed")
    assert lacks in said("eval", f"checkpoint={checkpoint}", f"data.root={root}", "split=val", *QUICK)
    here("inspect", "data=imagenet", f"data.root={root}", "data.num_workers=0", "hydra.run.dir=seen")
    found = json.loads(Path("seen/inspect.json").read_text())
    assert found["training_refuses"].startswith(lacks) and found["splits"] == {"test": 30}


def kaggle(root: Path) -> None:
    rows = [f"{Path(name).stem},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in IMAGES.items()]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows[::-1], ""]))


def kit(root: Path) -> None:
    """As the development kit: numbers of its own, and what they mean."""
    order = WNIDS[::-1]
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(i + 1, wnid, "words") for i, wnid in enumerate([*order, "n00001740"])], kinds)
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets})
    numbers = [order.index(wnid) + 1 for wnid in IMAGES.values()]
    (folder / labels.GROUND_TRUTH).write_text("".join(f"{number}\n" for number in numbers))


def lines(root: Path) -> None:
    """As Caffe's val.txt: places among the sorted WordNet ids."""
    places = [f"{name} {labels.wordnet_ids().index(wnid)}\n" for name, wnid in IMAGES.items()]
    (root / "val.txt").write_text("".join(places))


@pytest.mark.parametrize("write", [kaggle, kit, lines])
def test_images_in_one_folder_with_labels_beside(
    write: Callable[[Path], None], sets: Path, checkpoint: Path, here: Callable[..., None]
) -> None:
    root = link(Path("root").absolute(), val=sets / "flat")
    write(root)
    here("eval", f"checkpoint={checkpoint}", f"data.root={root}", *QUICK)
    assert targets_in() == EXPECTED


def test_kaggles_folders(sets: Path, train: Callable[..., Any]) -> None:
    root = Path("root").absolute()
    link(root / "ILSVRC/Data/CLS-LOC", train=sets / "train", val=sets / "flat", test=sets / "flat")
    kaggle(root)
    train(*TRAIN[1:], f"data.root={root}")
    assert targets_in(Path("trained/test")) == EXPECTED


def test_the_labels_that_ship(sets: Path, checkpoint: Path, said: Callable[..., str]) -> None:
    """Those of the official images: their first is n01751748, a sea snake."""
    root = link(Path("root").absolute(), val=sets / "flat")
    names, wnids = sorted(IMAGES), labels.official_labels()[:30]
    assert labels.labels_of(names, None) == wnids and wnids[0] == "n01751748"
    message = said("eval", f"checkpoint={checkpoint}", f"data.root={root}", *QUICK)
    assert "the data has the class " in message and "which the checkpoint does not know" in message


def test_a_file_of_labels_that_is_given(sets: Path, checkpoint: Path, here: Callable[..., None]) -> None:
    root = link(Path("root").absolute(), val=sets / "flat")
    Path("mine.txt").write_text("".join(f"{wnid}\n" for wnid in IMAGES.values()))
    here("eval", f"checkpoint={checkpoint}", f"data.root={root}", "data.labels=mine.txt", *QUICK)
    assert targets_in() == EXPECTED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("ILSVRC2012_val_00000001.JPEG 3\n", "_00000002.JPEG is not in mine.txt (29 such images)"),
        ("ILSVRC2012_val_00000001.JPEG 1000\n", "gives ILSVRC2012_val_00000001 the class '1000'; expected"),
        ("cat\n", "gives ILSVRC2012_val_00000001 the class 'cat'; expected a WordNet id"),
        (None, "mine.txt can't be read ([Errno 2]"),
    ],
)
def test_labels_that_do_not_fit(
    content: str | None, words: str, sets: Path, said: Callable[..., str], checkpoint: Path
) -> None:
    root = link(Path("root").absolute(), val=sets / "flat")
    if content is not None:
        Path("mine.txt").write_text(content)
    arguments = (f"data.root={root}", "data.labels=mine.txt", *QUICK)
    assert words in said("eval", f"checkpoint={checkpoint}", *arguments)


def test_the_ground_truth_without_its_numbers(sets: Path, said: Callable[..., str], checkpoint: Path) -> None:
    root = link(Path("root").absolute(), val=sets / "flat")
    (root / labels.GROUND_TRUTH).write_text("1\n" * 30)
    message = said("eval", f"checkpoint={checkpoint}", f"data.root={root}", *QUICK)
    assert f"{root / 'meta.mat'} can't be read; {labels.GROUND_TRUTH} has numbers" in message


def test_other_names_in_one_folder(sets: Path, said: Callable[..., str], checkpoint: Path) -> None:
    shutil.copytree(sets / "flat", "root/val")
    write_picture(Path("root/val/holiday.JPEG"))
    message = said("eval", f"checkpoint={checkpoint}", "data.root=root", *QUICK)
    assert "holiday.JPEG is not among the official validation images (1 such images)" in message


def test_inspect_of_images_in_one_folder(sets: Path, here: Callable[..., None]) -> None:
    root = link(Path("root").absolute(), train=sets / "train", val=sets / "flat")
    kaggle(root)
    here("inspect", "data=imagenet", f"data.root={root}", "data.num_workers=0", "hydra.run.dir=seen")
    found = json.loads(Path("seen/inspect.json").read_text())
    assert found["splits"] == {"train": 60, "test": 30} and found["training_refuses"] is None
    assert found["classes"][WNIDS[0]] == {"train": 2, "test": 1}


def test_labels_as_a_spreadsheet_writes_them(tmp_path: Path) -> None:
    """With a mark at the start, quotes, and carriage returns."""
    rows = ['"ImageId","PredictionString"', *(f'"{Path(n).stem}","{w} 1 2 3 4"' for n, w in IMAGES.items())]
    (tmp_path / "labels.csv").write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    found = labels.labels_of(list(IMAGES), tmp_path / "labels.csv")
    assert found == list(IMAGES.values())
