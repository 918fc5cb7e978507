"""Folders of image files: `root/<class>/…` or `root/{train,val,test}/<class>/…`."""

import bisect
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from imgcls.augment import worker_transform
from imgcls.data.base import SPLITS, ImageDataModule, ImageDataset, cores
from imgcls.data.decode import EXTENSIONS, decode
from imgcls.data.index import Paths, folder_index
from imgcls.data.spec import DataSpec
from imgcls.data.torchvision_sets import per_channel
from imgcls.errors import UserError

FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class FolderImages(ImageDataset):
    """Image files, decoded one by one in the loader's workers, each to a square of `spec.image_size`.

    Workers share the paths and the targets, and never copy them.
    """

    def __init__(self, root: Path, paths: Paths, targets: Tensor, channels: int, evaluate: nn.Module) -> None:
        self.root, self.paths, self.targets, self.channels = root, paths, targets, channels
        self.evaluate, self.transform = evaluate, evaluate

    def images(self, keys: Tensor) -> Tensor:
        out = []
        for key in keys.tolist():
            torch.default_generator.manual_seed(self.sample_seed(key))  # torch.manual_seed takes 0.15 ms
            out.append(self.transform(self.read(key % len(self))))
        return torch.stack(out)

    def picture(self, index: int) -> Tensor:
        return self.evaluate(self.read(index))  # type: ignore[no-any-return]

    def read(self, index: int) -> Tensor:
        """Returns one image `(C, H, W) uint8` as it is stored, of any height and width."""
        return decode(self.name(index), self.channels)

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.paths[index]))


class ImageFolder(ImageDataModule):
    """Any folder of images with one folder for each class; splits that it lacks are cut from train.

    Args:
        root: the folder.
        exclude: a file that lists images to leave out everywhere (see `exclude_list`), such as `imgcls inspect` writes.
        image_size, channels, mean, std, crop_ratio, interpolation, mirror: as in `DataSpec`.
        Other arguments: `ImageDataModule`.
    """

    layout = "root/<class>/… or root/{train,val,test}/<class>/…"

    def __init__(
        self,
        *,
        root: str,
        exclude: str | None = None,
        image_size: int = 224,
        channels: Literal[1, 3] = 3,
        mean: list[float],
        std: list[float],
        crop_ratio: float = 0.875,
        interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
        mirror: bool = True,
        **common: object,
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"data.root={root}: there is no such folder; expected {self.layout}")
        self.folders, self.classes = self.find()
        self.exclude, self.excluded = exclude, exclude_list(exclude)
        for entry in self.excluded:
            if not any((self.root / entry).is_relative_to(folder) for folder in self.folders.values()):
                raise no_such_entry(exclude, entry, self.root)
        self._spec = DataSpec(
            self.class_names(), channels, image_size, per_channel(mean, channels), per_channel(std, channels),
            interpolation, crop_ratio, mirror,
        )  # fmt: skip

    def find(self) -> tuple[dict[str, Path], list[str]]:
        """Returns the folder of each split that there is, and the names of the class folders, sorted."""
        folders = split_folders(self.root)
        return folders, class_folders(folders["train"])

    def class_names(self) -> tuple[str, ...]:
        """Returns what people call the classes, in the order of the class folders."""
        return tuple(self.classes)

    def load(self, split: str) -> FolderImages | None:
        if split not in self.folders:
            return None
        folder = self.folders[split]
        names = class_folders(folder)
        if unknown := sorted(set(names) - set(self.classes)):
            raise UserError(
                f"{folder} has the class {unknown[0]!r}, which {self.folders['train']} does not; expected the same classes"
            )
        counts, paths = folder_index(folder, names)
        targets = torch.arange(len(names)).repeat_interleave(counts)
        if gone := self._excluded_places(folder, names, targets, paths):
            kept = np.delete(np.arange(len(paths)), gone)
            paths, targets = paths.part(kept), targets[kept]
            counts = torch.bincount(targets, minlength=len(names))
        filled = {name for name, count in zip(names, counts.tolist(), strict=True) if count}
        if empty := [name for name in self.classes if name not in filled]:
            kinds = " ".join(sorted(EXTENSIONS))
            raise UserError(
                f"{folder / empty[0]} holds no image{' that is not excluded' if self.excluded else ''}; expected files that end in one of {kinds}"
            )
        return FolderImages(folder, paths, targets, self.spec.channels, evaluation_transform(self.spec))

    def _excluded_places(self, folder: Path, names: list[str], targets: Tensor, paths: Paths) -> list[int]:
        """Returns where in a split's `paths`, sorted within each class, the excluded ones are."""
        places = []
        for entry in self.excluded:
            if not (self.root / entry).is_relative_to(folder):
                continue
            name = os.path.relpath(self.root / entry, folder)
            label = bisect.bisect_left(names, name.partition(os.sep)[0])
            first, end = torch.searchsorted(targets, torch.tensor([label, label + 1])).tolist()
            place = bisect.bisect_left(paths, name, first, end, key=os.fsdecode)
            if place == end or os.fsdecode(paths[place]) != name:
                raise no_such_entry(self.exclude, entry, self.root)
            places.append(place)
        return places

    def part(self, dataset: ImageDataset, indices: np.ndarray, training: bool) -> FolderImages:
        assert isinstance(dataset, FolderImages)
        targets = dataset.targets[torch.from_numpy(indices)]
        out = FolderImages(dataset.root, dataset.paths.part(indices), targets, dataset.channels, dataset.evaluate)
        if training:
            out.transform = worker_transform(self.augment, self.spec, dataset.evaluate) or dataset.evaluate
        return out

    def default_workers(self) -> int:
        return min(cores(), 16)


def evaluation_transform(spec: DataSpec) -> nn.Module:
    """Returns what evaluation does to a decoded image: resize of the short side, and the centre square."""
    interpolation = InterpolationMode(spec.interpolation)
    return v2.Compose([
        v2.Resize(round(spec.image_size / spec.crop_ratio), interpolation=interpolation, antialias=True),
        v2.CenterCrop(spec.image_size),
    ])  # fmt: skip


def exclude_list(path: str | None) -> list[str]:
    """Returns the files that a list names: a path relative to the root a line. What follows a tab and `#`, and a line
    that starts with `#`, is a comment; a path that starts so is written `./#…`.

    Raises:
        UserError: there is no such file, or it can't be read.
    """
    if path is None:
        return []
    try:
        lines = Path(path).expanduser().read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"data.exclude={path} can't be read ({error.strerror}); expected a text file with a path relative to "
            "data.root a line"
        ) from error
    names = [os.fsdecode(line.split(b"\t#")[0].rstrip(b"\r")) for line in lines if not line.startswith(b"#")]
    return sorted({os.path.normpath(name) for name in names if name.strip()})


def no_such_entry(path: str | None, entry: str, root: Path) -> UserError:
    return UserError(
        f"data.exclude={path} names {entry!r}, which is no image of a split of {root}; take the line out of it, or "
        "make the list anew with imgcls inspect"
    )


def named_splits(root: Path) -> dict[str, Path]:
    """Returns the folders in `root` that have the name of a split."""
    return {s: root / name for s in SPLITS for name in reversed(FOLDERS[s]) if (root / name).is_dir()}


def split_folders(root: Path) -> dict[str, Path]:
    """Returns the folder of each split that there is; a root without split folders is all train."""
    found = named_splits(root)
    if "train" in found:
        return found
    if found:
        raise UserError(
            f"{root} has {', '.join(path.name for path in found.values())} but no train folder; expected root/train/<class>/…"
        )
    return {"train": root}


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the class folders, sorted."""
    names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folders; expected {folder}/<class>/<image files>")
    return names
