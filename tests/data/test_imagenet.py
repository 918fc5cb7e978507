"""ImageNet from folders and from the two tar files, with few classes and images."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pictures import write_picture
from support.sets import check_set

from imgcls.data import imagenet_labels as labels
from imgcls.data.imagenet import ImageNet
from imgcls.data.imagenet_layouts import TARS
from imgcls.data.module import SPLITS
from imgcls.errors import UserError

VAL_LABELS = [
    "n01751748",
    "n09193705",
    "n02105855",
    "n04263257",
    "n03125729",
]  # of the first five official images
CLASSES = sorted(VAL_LABELS)
TRAIN_TAR, VAL_TAR = TARS["train"], TARS["val"]


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def inner(wnid: str) -> bytes:
    return tar({f"{wnid}_{i}.JPEG": jpeg(i) for i in range(4)})


def train_tar() -> bytes:
    return tar({f"{wnid}.tar": inner(wnid) for wnid in CLASSES})


def val_tar() -> bytes:
    return tar({f"ILSVRC2012_val_{i:08}.JPEG": jpeg(100 + i) for i in range(1, 6)})


def imagenet(root: Path, **arguments: Any) -> ImageNet:
    settings = {
        "mean": [0.5],
        "std": [0.2],
        "image_size": 16,
        "batch_size": 4,
        "num_workers": 0,
        "val_fraction": 0.25,
    }
    return ImageNet(root=str(root), **{**settings, **arguments})


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        data = imagenet(root)
        data.prepare_data()
        data.setup()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with two tar files like the official ones, whose checksums are taken for right."""
    monkeypatch.setattr(
        "torchvision.datasets.imagenet.check_integrity", lambda path, md5=None: Path(path).is_file()
    )
    monkeypatch.setattr(labels, "official_labels", lambda: VAL_LABELS)
    root = tmp_path / "imagenet"
    root.mkdir()
    (root / TRAIN_TAR).write_bytes(train_tar())
    (root / VAL_TAR).write_bytes(val_tar())
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.JPEG")}


def test_tars_are_unpacked(tars: Path) -> None:
    data = imagenet(tars)
    assert data.spec.num_classes == 1000  # known before anything is unpacked
    data.prepare_data()
    expected = {f"train/{wnid}/{wnid}_{i}.JPEG": jpeg(i) for wnid in CLASSES for i in range(4)}
    expected |= {
        f"val/{wnid}/ILSVRC2012_val_{i:08}.JPEG": jpeg(100 + i) for i, wnid in enumerate(VAL_LABELS, 1)
    }
    assert files(tars) == expected
    assert not list(tars.glob("*.partial"))


def test_what_was_unpacked_is_read(tars: Path) -> None:
    imagenet(tars).prepare_data()
    data = imagenet(tars)
    data.prepare_data()
    data.setup()
    assert [len(data.sets[split]) for split in SPLITS] == [15, 5, 5]
    assert data.classes == CLASSES and data.spec.num_classes == 5
    for split, folder in (("train", "train"), ("val", "train"), ("test", "val")):
        for i, target in enumerate(data.sets[split].targets.tolist()):
            path = Path(data.sets[split].name(i))
            assert (path.parts[-3], path.parts[-2]) == (folder, CLASSES[target])
    assert next(iter(data.train_dataloader())).images.shape == (4, 3, 16, 16)


def test_what_is_there_is_not_unpacked_again(tars: Path) -> None:
    imagenet(tars).prepare_data()
    before = files(tars)
    for name in (TRAIN_TAR, VAL_TAR):
        (tars / name).write_bytes(b"no tar")
    imagenet(tars).prepare_data()
    assert files(tars) == before


def test_what_an_earlier_failure_left_is_removed(tars: Path) -> None:
    write_picture(tars / "val.partial" / "n00000000" / "left.jpg")
    imagenet(tars).prepare_data()
    assert sorted(path.name for path in (tars / "val").iterdir()) == CLASSES


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR])
@pytest.mark.parametrize("content", [b"", b"<html>" * 200, train_tar(), val_tar()[:-1024]])
def test_a_tar_with_another_checksum(tmp_path: Path, name: str, content: bytes) -> None:
    """Of what is not the official archive, nothing is unpacked."""
    (tmp_path / name).write_bytes(content)
    message, found = refused(tmp_path), hashlib.md5(content).hexdigest()
    expected = {"train": "1d675b47d978889d74fa0da5fadfb00e", "val": "29b22e2961454d5413ddabcf34fc5622"}
    sums = f"checksum differs: MD5 {found}, expected {expected['train' if name == TRAIN_TAR else 'val']}"
    assert message == f"{tmp_path / name}: {sums}; fetch it again or free some disk"
    assert not (tmp_path / "train").exists() and not (tmp_path / "val").exists()


def test_a_tar_that_cannot_be_unpacked(tars: Path) -> None:
    (tars / TRAIN_TAR).write_bytes(tar({f"{CLASSES[0]}.tar": b"<html>" * 200}))
    assert refused(tars).startswith(f"{tars / TRAIN_TAR}: ")
    assert not (tars / "train").exists()


@pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="here nothing but the official checksum keeps them out"
)
@pytest.mark.parametrize("name", ["../evil.JPEG", "n01751748/../../../evil.JPEG"])
@pytest.mark.parametrize("within", [False, True])
def test_nothing_leaves_the_folder(tars: Path, name: str, within: bool) -> None:
    """Even where the checksum is that of the official archive, as this fixture pretends."""
    planted = tar({name: jpeg(0)})
    (tars / TRAIN_TAR).write_bytes(tar({f"{CLASSES[0]}.tar": planted}) if within else planted)
    message = refused(tars)
    assert message.startswith(f"{tars / TRAIN_TAR}: ") and "evil.JPEG" in message
    assert not list(tars.parent.rglob("evil*")) and not (tars / "train").exists()


def test_the_official_labels() -> None:
    found = labels.official_labels()
    assert found[:5] == VAL_LABELS and len(found) == 50_000 and len(set(found)) == 1000


def write_folders(root: Path, *wnids: str) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for wnid in wnids:
            for i in range(count):
                write_picture(root / split / wnid / f"{wnid}_{i}.JPEG", seed=i)
    return root


def test_a_subset_of_the_classes(tmp_path: Path) -> None:
    data = imagenet(write_folders(tmp_path, "n02123045", "n01440764"))
    data.prepare_data()
    data.setup()
    assert data.spec.class_names == ("tench", "tabby")
    assert [len(data.sets[split]) for split in SPLITS] == [6, 2, 4]
    assert all("/val/" in data.sets["test"].name(i) for i in range(4))  # the official validation images


def test_without_val_a_test_split_is_cut(tmp_path: Path) -> None:
    root = write_folders(tmp_path, "n02123045", "n01440764")
    (root / "val").rename(root / "other")
    data = imagenet(root, test_fraction=0.25)
    data.setup()
    assert [len(data.sets[split]) for split in SPLITS] == [4, 2, 2]


def test_a_folder_that_is_no_wordnet_id(tmp_path: Path) -> None:
    message = refused(write_folders(tmp_path, "n02123045", "n99999999"))
    assert message.startswith(
        f"{tmp_path}/train has the folder 'n99999999', which is no WordNet id of ImageNet-1k"
    )


def test_a_folder_without_imagenet(tmp_path: Path) -> None:
    message = refused(tmp_path)
    assert message.startswith(f"data.root={tmp_path} holds no ImageNet; expected root/train/<WordNet id>/")
    assert TRAIN_TAR in message and VAL_TAR in message


def test_a_thousand_names_in_words(tars: Path) -> None:
    names = imagenet(tars).spec.class_names
    assert len(names) == len(set(names)) == 1000
    assert names[0] == "tench" and names[281].startswith("tabby") and names[999].startswith("toilet")
    assert all(name.strip() == name and not name[1:9].isdigit() for name in names)


def test_names_are_looked_up_once() -> None:
    """Reading them for each class folder would take a minute for all of ImageNet."""
    assert labels.class_words() is labels.class_words()


def test_the_config(folder: Path) -> None:
    for wnid, word in zip(CLASSES, ("cat", "dog", "fox"), strict=False):
        (folder / "train").mkdir(exist_ok=True)
        (folder / word).rename(folder / "train" / wnid)
    check_set("imagenet", f"data.root={folder}")


def test_no_imagenet(said: Callable[..., str]) -> None:
    message = said("train", "data=imagenet", "data.root=.")
    assert "holds no ImageNet; expected root/train/<WordNet id>/…" in message


def test_inspect(here: Callable[..., None], folder: Path) -> None:
    """The official validation images are the test split, also where training refuses the set."""
    for split in ("train", "val"):
        for wnid, word in zip(CLASSES, ("cat", "dog"), strict=False):
            shutil.copytree(folder / word, folder / split / wnid)
    for word in ("cat", "dog", "fox"):
        shutil.rmtree(folder / word)
    arguments = ("data=imagenet", f"data.root={folder}", "data.num_workers=0", "data.image_size=32")
    here("inspect", *arguments, "hydra.run.dir=whole")
    assert json.loads(Path("whole/inspect.json").read_text())["splits"] == {"train": 24, "test": 24}
    write_picture(folder / "train" / "walrus" / "0.jpg", seed=5)
    here("inspect", *arguments, "hydra.run.dir=refused")
    found = json.loads(Path("refused/inspect.json").read_text())
    assert "no WordNet id" in found["training_refuses"] and found["splits"] == {"train": 25, "test": 24}
