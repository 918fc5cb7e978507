"""ImageNet source: ImageNet-1k (Russakovsky et al. 2015) as people have it, and its variants for evaluation.

The labels of the official test images are not public. So the 50,000 official validation images are the
test split here, and validation is a small stratified part of train: nothing is selected on the images
that the reported number is taken on. Any subset of the 1,000 classes works too.
"""

import logging
import shutil
import tarfile
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor
from torchvision.datasets import imagenet
from torchvision.datasets.utils import calculate_md5

from imgcls.data import imagenet_labels as labels
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.imagenet_layouts import (
    LAYOUTS,
    PUBLISHED,
    TARS,
    Variant,
    base_of,
    flat_images,
    split_folder,
    variant_folder,
)  # fmt: skip
from imgcls.data.loading.folders import as_bytes, as_names, class_folders, folder_index, name_left_out
from imgcls.data.module import Place
from imgcls.errors import UserError
from imgcls.processes import rank

log = logging.getLogger(__name__)
TEST_ALONE = "is a test set alone: to train, or for knn or features, leave data.variant out"


class ImageNet(ImageFolder):
    """ImageNet-1k in one of the layouts of `imagenet_layouts.LAYOUTS`, or a variant of it, whose images are a
    test split and nothing else.

    Args:
        variant: v2 (ImageNetV2, Recht et al. 2019, arXiv:1902.10811), real (ReaL: the validation images with
            reassessed labels, of which any is right, Beyer et al. 2020, arXiv:2006.07159), a (ImageNet-A,
            Hendrycks et al. 2021, arXiv:1907.07174), r (ImageNet-R, Hendrycks et al. 2021, arXiv:2006.16241),
            sketch (ImageNet-Sketch, Wang et al. 2019, arXiv:1905.13549), c (ImageNet-C, Hendrycks and
            Dietterich 2019, arXiv:1903.12261).
        corruption, severity: of c: which, such as gaussian_noise, and how strong, from 1 to 5.
        labels: the labels of validation images that lie in one folder (`imagenet_labels.read_labels`), or of
            ReaL (real.json). null: a file that lies beside them, else the official ones, which are known.
        Other arguments: `ImageFolder`.
    """

    val_is_test = True
    layout = LAYOUTS

    def __init__(
        self,
        *,
        variant: Variant | None = None,
        corruption: Place | None = None,
        severity: Annotated[int, Field(ge=1, le=5, strict=True)] | None = None,
        labels: Place | None = None,
        **common: Any,
    ) -> None:
        self.variant, self.corruption, self.severity = variant, corruption, severity
        self.labels = None if labels is None else Path(labels).expanduser()
        if variant != "c" and (corruption, severity) != (None, None):
            given = f"data.corruption={corruption} data.severity={severity}"
            raise UserError(f"{given}: these are for data.variant=c alone; leave them out")
        if variant == "c":  # its images are the crops that networks see; published numbers are of the whole
            common["crop_ratio"] = 1.0
        self.own_classes_only = variant in ("a", "r")
        self.any_label = variant == "real"
        super().__init__(**common)

    def find(self) -> tuple[dict[str, Path], list[str]]:
        if self.variant not in (None, "real"):
            return self.find_variant(self.variant)
        self.base = base_of(self.root)
        train, val = (split_folder(self.base, split) for split in ("train", "val"))
        if self.variant == "real":
            self.test_only = f"data.variant=real {TEST_ALONE}"
            if not val.is_dir():
                raise UserError(f"{val} is not there; data.variant=real expects the validation images there")
            return {"test": val}, labels.wordnet_ids()
        has_val = val.is_dir() or (self.base / TARS["val"]).is_file()
        folders = {"train": train, **({"test": val} if has_val else {})}
        name_left_out(self.base, folders.values())
        if train.is_dir():
            return folders, self.known(train)
        if (self.base / TARS["train"]).is_file():
            return folders, labels.wordnet_ids()
        where = f"{self.base} has no folder train and no {TARS['train']}"
        self.test_only = f"{where}, and training needs one; imgcls eval needs val alone"
        if not val.is_dir():
            return {"test": val}, labels.wordnet_ids()
        flat = self.flat_labels(val)
        return {"test": val}, sorted(set(flat[1])) if flat[0] else self.known(val)

    def find_variant(self, variant: Variant) -> tuple[dict[str, Path], list[str]]:
        folder = variant_folder(self.root, variant, self.corruption, self.severity)
        self.test_only = f"data.variant={variant} {TEST_ALONE}"
        classes = self.known(folder)
        if len(classes) != (expected := PUBLISHED[variant]) and rank() == 0:
            words = "%s has %d of the %s classes of data.variant=%s, of all of which published numbers are"
            log.warning(words, folder, len(classes), f"{expected:,}", variant)
        return {"test": folder}, classes

    def known(self, folder: Path) -> list[str]:
        """Returns the names of the class folders in the order of the classes: WordNet ids, or of ImageNetV2
        numbers. UserError: one is of another class."""
        names = class_folders(folder)
        if strange := [name for name in names if labels.wordnet_id(name) is None]:
            fault = f"{folder} has the folder {strange[0]!r}, which is no WordNet id of ImageNet-1k"
            raise UserError(f"{fault}; use data=imagefolder")
        return sorted(names, key=lambda name: str(labels.wordnet_id(name)))

    def flat_labels(self, folder: Path) -> tuple[list[str], list[str]]:
        """Returns the images that lie in a folder itself, and their WordNet ids; nothing of class folders."""
        if not (names := flat_images(folder)):
            return [], []
        file = self.labels or labels.labels_beside((self.root, self.base, folder))
        return names, labels.labels_of(names, file)

    def labelled(self, folder: Path) -> tuple[Tensor, Tensor]:
        if self.any_label:
            return self.real(folder)
        names, wnids = self.flat_labels(folder) if self.variant is None else ([], [])
        if not names:
            return super().labelled(folder)
        places = {wnid: place for place, wnid in enumerate(self.classes)}
        if unknown := sorted(set(wnids) - places.keys()):
            others = f"which {self.folders['train']} does not; expected the same classes"
            raise UserError(f"{folder} has the class {unknown[0]!r}, {others}")
        return as_bytes(names), torch.tensor([places[wnid] for wnid in wnids])

    def real(self, folder: Path) -> tuple[Tensor, Tensor]:
        """Returns the paths of the validation images that have ReaL labels, and these, `(N, 1000) uint8`."""
        names = flat_images(folder)
        paths = as_bytes(names) if names else folder_index(folder, class_folders(folder))[1]
        file = self.labels or labels.labels_beside((self.root, self.base), ["real.json"])
        found = labels.real_labels_of([name.decode() for name in as_names(paths).tolist()], file)
        targets = torch.zeros(len(found), len(self.classes), dtype=torch.uint8)
        for row, classes in zip(targets, found, strict=True):
            row[classes] = 1
        kept = targets.amax(1) > 0
        return paths[kept], targets[kept]

    @property
    def all_classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the 1,000 classes, in the order of published weights."""
        return tuple(labels.class_words()[wnid] for wnid in labels.wordnet_ids())

    def class_names(self) -> tuple[str, ...]:
        return tuple(labels.class_words()[str(labels.wordnet_id(name))] for name in self.classes)

    def prepare_data(self) -> None:
        """Unpacks the tar files, with a look at checksums; a folder gets its name when it is whole."""
        if self.variant not in (None, "real"):
            return
        for split, tar in TARS.items():
            done = split_folder(self.base, split)
            if done.is_dir() or not (self.base / tar).is_file():
                continue
            with FileLock(self.base / f".{split}.lock"):
                if not done.is_dir():
                    unpack(self.base, split)


def unpack(root: Path, split: str) -> None:
    """Unpacks the official tar file of a split. UserError: it is another file, or can't be unpacked."""
    file, partial = root / TARS[split], root / f"{split}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if split == "train":
            imagenet.parse_train_archive(root, folder=partial.name)
        else:
            imagenet.parse_val_archive(root, wnids=labels.official_labels(), folder=partial.name)
    except (tarfile.TarError, OSError, EOFError, ValueError, RuntimeError) as error:
        fault = f"{file}: {' '.join(str(error).split()).rstrip('.')}"
        if "is corrupted" in fault:  # torchvision says no more
            expected = imagenet.ARCHIVE_META[split][1]
            fault = f"{file}: checksum differs: MD5 {calculate_md5(file)}, expected {expected}"
        raise UserError(f"{fault}; fetch it again or free some disk") from error
    partial.rename(root / split)
