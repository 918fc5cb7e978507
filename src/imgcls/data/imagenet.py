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
from collections.abc import Iterator
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
    for name, content in _files(archive, r"n\d{8}\.tar"):
        with tarfile.open(fileobj=content, mode="r:") as inner:
            for picture, data in _files(inner, r"n\d{8}_\d+\.JPEG"):
                _write(data, folder / Path(name).stem / picture)


def _unpack_val(archive: tarfile.TarFile, folder: Path) -> None:
    """A flat tar; ILSVRC2012_val_00000001.JPEG is the first line of the label file."""
    text = gzip.decompress(importlib.resources.files("imgcls.data").joinpath("imagenet_val_labels.txt.gz").read_bytes())
    labels, wnids = [int(line) for line in text.split()], sorted(_names())
    for name, content in _files(archive, r"ILSVRC2012_val_\d{8}\.JPEG"):
        number = int(name.removesuffix(".JPEG")[-8:])
        if not 1 <= number <= len(labels):
            raise ValueError(f"it holds {name!r}, but there are {len(labels):,} images")
        _write(content, folder / wnids[labels[number - 1]] / name)


def _files(archive: tarfile.TarFile, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields name and content of each file; folders that it may lie in are dropped, so nothing leaves its folder."""
    for member in archive:
        if member.isdir():
            continue
        name, content = Path(member.name).name, archive.extractfile(member) if member.isfile() else None
        if content is None or not re.fullmatch(pattern, name) or ".." in Path(member.name).parts:
            raise ValueError(f"it holds {member.name!r}, which is no file of the official archive")
        yield name, content


def _write(content: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as out:
        shutil.copyfileobj(content, out)
