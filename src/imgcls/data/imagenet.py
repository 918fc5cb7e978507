"""ImageNet source: ImageNet-1k (Russakovsky et al. 2015), in folders by WordNet id or in the two tar files.

The labels of the official test images are not public. So the 50,000 official validation images are the
test split here, and validation is a small stratified part of train: nothing is selected on the images
that the reported number is taken on. Any subset of the 1,000 classes works too.

imagenet_val_labels.txt.gz holds the class (0 to 999, by sorted WordNet id) of each validation image in
the order of the files; from TensorFlow Datasets (Apache-2.0), `datasets/imagenet2012/validation_labels.txt`.
"""

import functools
import gzip
import importlib.resources
import shutil
import tarfile
from collections import Counter
from pathlib import Path

from filelock import FileLock
from torchvision.datasets import imagenet

from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading.folders import class_folders, named
from imgcls.errors import UserError

TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


class ImageNet(ImageFolder):
    """`root/{train,val}/<WordNet id>/…`, or a root with two tar files. Arguments: those of `ImageFolder`."""

    val_is_test = True
    layout = f"root/train/<WordNet id>/… and root/val/<WordNet id>/…, or {' and '.join(TARS.values())} in it"

    def find(self) -> tuple[dict[str, Path], list[str]]:
        train, val = (next(iter(named(self.root, [split])), self.root / split) for split in TARS)
        folders = {"train": train}
        if val.is_dir() or (self.root / TARS["val"]).is_file():
            folders["test"] = val
        if not train.is_dir():
            if not (self.root / TARS["train"]).is_file():
                raise UserError(f"data.root={self.root} holds no ImageNet; expected {self.layout}")
            return folders, sorted(_names())
        classes = class_folders(train)
        if strange := [name for name in classes if name not in _names()]:
            fault = f"{train} has the folder {strange[0]!r}, which is no WordNet id of ImageNet-1k"
            raise UserError(f"{fault}; use data=imagefolder")
        return folders, classes

    @property
    def all_classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the 1,000 classes, in the order of published weights."""
        return tuple(_names()[wnid] for wnid in sorted(_names()))

    def class_names(self) -> tuple[str, ...]:
        return tuple(_names()[wnid] for wnid in self.classes)

    def prepare_data(self) -> None:
        """Unpacks the tar files, with a look at checksums; a folder gets its name when it is whole."""
        for split, tar in TARS.items():
            partial, done = self.root / f"{split}.partial", self.root / split
            if done.is_dir() or not (self.root / tar).is_file():
                continue
            with FileLock(self.root / f".{split}.lock"):
                if done.is_dir():
                    continue
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    if split == "train":
                        imagenet.parse_train_archive(self.root, folder=partial.name)
                    else:
                        imagenet.parse_val_archive(self.root, wnids=_val_labels(), folder=partial.name)
                except (tarfile.TarError, OSError, EOFError, ValueError, RuntimeError) as error:
                    fault = f"{self.root / tar}: {' '.join(str(error).split()).rstrip('.')}"
                    raise UserError(f"{fault}; fetch it again or free some disk") from error
                partial.rename(done)


@functools.cache
def _names() -> dict[str, str]:
    """Returns the words for each WordNet id: the first synonym, or as many as make it unique."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    words = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
    short = {wnid: text.split(",")[0] for wnid, text in words.items()}
    for longer in (words, {wnid: f"{text} ({wnid})" for wnid, text in words.items()}):
        counts = Counter(short.values())
        short = {wnid: text if counts[text] == 1 else longer[wnid] for wnid, text in short.items()}
    return short


def _val_labels() -> list[str]:
    """Returns the WordNet id of each validation image, in the order of the files."""
    packed = importlib.resources.files("imgcls.data").joinpath("imagenet_val_labels.txt.gz").read_bytes()
    wnids = sorted(_names())
    return [wnids[int(line)] for line in gzip.decompress(packed).split()]
