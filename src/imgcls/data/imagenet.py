"""ImageNet-1k (Russakovsky et al. 2015) in folders by WordNet id, or from the two official tar files.

The labels of the official test images are not public. So the 50,000 official validation images are the
test split here, and validation is a small stratified part of train: nothing is selected on the images
that the reported number is taken on. Any subset of the 1,000 classes works too.

imagenet_val_labels.txt.gz holds the class (0 to 999, by sorted WordNet id) of each validation image in
the order of the files; from TensorFlow Datasets (Apache-2.0), `datasets/imagenet2012/validation_labels.txt`.
"""

import functools
import gzip
import importlib.resources
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import IO

from filelock import FileLock

from imgcls.data.imagefolder import ImageFolder, class_folders
from imgcls.errors import UserError

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


class ImageNet(ImageFolder):
    """`root/train/<WordNet id>/…` and `root/val/<WordNet id>/…`, or a root with the two tar files.

    Arguments: those of `ImageFolder`.
    """

    layout = f"root/train/<WordNet id>/… and root/val/<WordNet id>/…, or {TRAIN_TAR} and {VAL_TAR} in it"

    def find(self) -> tuple[dict[str, Path], list[str]]:
        folders = {"train": self.root / "train"}
        if (self.root / "val").is_dir() or (self.root / VAL_TAR).is_file():
            folders["test"] = self.root / "val"
        if folders["train"].is_dir():
            classes = class_folders(folders["train"])
            if strange := [name for name in classes if name not in _names()]:
                raise UserError(
                    f"{folders['train']} has the folder {strange[0]!r}, which is no WordNet id of ImageNet-1k; use data=imagefolder"
                )
            return folders, classes
        if not (self.root / TRAIN_TAR).is_file():
            raise UserError(f"data.root={self.root} holds no ImageNet; expected {self.layout}")
        return folders, sorted(_names())

    def class_names(self) -> tuple[str, ...]:
        names = _names()
        return tuple(names[wnid] for wnid in self.classes)

    def prepare_data(self) -> None:
        """Unpacks the tar files, each to a temporary name that becomes its own when all is there."""
        for tar, split, unpack in ((TRAIN_TAR, "train", _unpack_train), (VAL_TAR, "val", _unpack_val)):
            done = self.root / split
            if done.is_dir() or not (self.root / tar).is_file():
                continue
            with FileLock(self.root / f".{split}.lock"):
                if done.is_dir():
                    continue
                partial = self.root / f"{split}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    with tarfile.open(self.root / tar, "r:") as archive:
                        unpack(archive, partial)
                    check_end(self.root / tar)
                except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                    reason = " ".join(str(error).split())
                    raise UserError(
                        f"{self.root / tar} can't be unpacked ({reason}); fetch it again or free some disk"
                    ) from error
                partial.rename(done)


@functools.cache
def _names() -> dict[str, str]:
    """Returns the words for each WordNet id: the first synonym, or as many as make it unique."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    pairs = list(zip(info.label_names(), info.label_descriptions(), strict=True))
    short, long = Counter(words.split(",")[0] for _, words in pairs), Counter(words for _, words in pairs)
    names = {}
    for wnid, words in pairs:
        first = words.split(",")[0]
        names[wnid] = first if short[first] == 1 else words if long[words] == 1 else f"{words} ({wnid})"
    return names


def check_end(tar: Path) -> None:
    """Raises ValueError where a tar file lacks the two zero blocks of its end: one cut between members reads as whole."""
    with tar.open("rb") as file:
        file.seek(-1024, 2)
        if any(file.read()):
            raise ValueError("its end is missing")


def _unpack_train(archive: tarfile.TarFile, folder: Path) -> None:
    """A tar of one tar for each class, named by its WordNet id."""
    for member in archive:
        content = archive.extractfile(member)
        if content is None:
            continue
        if not re.fullmatch(r"(.*/)?n\d{8}\.tar", member.name):
            raise ValueError(f"it holds {member.name!r} where n<8 digits>.tar is expected")
        with tarfile.open(fileobj=content, mode="r:") as inner:
            inner.extractall(folder / Path(member.name).stem, filter="data")


def _unpack_val(archive: tarfile.TarFile, folder: Path) -> None:
    """A flat tar; ILSVRC2012_val_00000001.JPEG is the first line of the label file."""
    text = gzip.decompress(importlib.resources.files("imgcls.data").joinpath("imagenet_val_labels.txt.gz").read_bytes())
    labels, wnids = [int(line) for line in text.split()], sorted(_names())
    for member in archive:
        content: IO[bytes] | None = archive.extractfile(member)
        if content is None:
            continue
        name = Path(member.name).name
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if number is None or not 1 <= int(number[1]) <= len(labels):
            raise ValueError(f"it holds {name!r} where ILSVRC2012_val_<8 digits>.JPEG is expected")
        target = folder / wnids[labels[int(number[1]) - 1]] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as out:
            shutil.copyfileobj(content, out)
