"""ImageFolder source: image files in one folder for each class, with or without folders for the splits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imgcls.augment.image import Transform
from imgcls.data.batch import Batch, EpochSampler, ImageDataset
from imgcls.data.loading.decode import EXTENSIONS, MAX_PIXELS, decode
from imgcls.data.loading.folders import as_names, class_folders, folder_index, name_left_out, split_folders
from imgcls.data.loading.on_device import DeviceDecoder, EncodedImages, check_device_decoder, training_device
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.data.loading.splits import Unreadable, with_stand_ins
from imgcls.data.module import ImageDataModule, Loader, Place, Positive
from imgcls.errors import UnreadableImage, UserError
from imgcls.processes import cores
from imgcls.spec import DataSpec, Share

OnError = Literal["raise", "skip"]
# Of pictures of any size: mean and deviation of ImageNet, and sizes that many networks are trained with.
FACTS: dict[str, Any] = {
    "image_size": 224, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    "crop_ratio": 0.875,
}  # fmt: skip


class FolderImages(ImageDataset):
    """Image files, decoded one by one in the loader's workers, each to `spec.image_size`; `paths` are bytes
    `(N, W) uint8` relative to `root`, filled with zeros: a tensor, so that workers share it."""

    on_error = "raise"
    max_pixels = MAX_PIXELS
    decoded: Mapping[int, Tensor] = {}  # images by their indices that the device has decoded already

    def __init__(
        self, root: Path, paths: Tensor, targets: Tensor, spec: DataSpec, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.root, self.paths, self.targets = root, paths, targets
        self.spec, self.max_pixels = spec, max_pixels
        self.prefix = os.path.join(root, "")  # Path would take 3% of the loader's time to join each path
        self.evaluate = self.transform = evaluation_transform(spec)

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """Returns a batch. For an image that can't be read another stands with `on_error` "skip"."""
        try:
            return super().__getitems__(keys)
        except UnreadableImage as error:
            if self.on_error == "raise":
                raise UnreadableImage(f"{error}; data.on_error=skip leaves out such images") from error
        black = torch.zeros(self.spec.channels, *self.spec.size, dtype=torch.uint8)
        return with_stand_ins(super().__getitems__, keys, len(self), black, self.targets[0])

    def images(self, keys: Tensor) -> Tensor:
        indices = (keys % len(self)).tolist()
        stored = (self.decoded[i] if i in self.decoded else self.read(i) for i in indices)
        return self.transformed(keys, stored)

    def preparation(self, spec: DataSpec) -> Transform:
        return self.evaluate if spec.size == self.spec.size else evaluation_transform(spec)

    def picture(self, index: int) -> Tensor:
        image: Tensor = self.evaluate(self.read(index))
        return image

    def read(self, index: int) -> Tensor:
        """Returns one image `(C, H, W) uint8` as it is stored, of any height and width."""
        return decode(self.name(index), self.spec.channels, self.max_pixels, self.spec.bits)

    def content(self, index: int) -> np.ndarray:
        """Returns the bytes `(n,) uint8` of a file."""
        return np.fromfile(self.name(index), np.uint8)

    def contents(self) -> Iterator[bytes | memoryview]:
        yield self.paths.numpy().data
        step = len(self) // 1000 + 1  # a file system in a network may take a millisecond for each file
        files = [Path(self.name(index)) for index in range(0, len(self), step)]
        yield repr([file.stat().st_size if file.exists() else None for file in files]).encode()

    def name(self, index: int) -> str:
        return self.prefix + os.fsdecode(self.paths[index].numpy().tobytes().rstrip(b"\0"))

    def part(self, indices: Tensor) -> Self:
        return type(self)(self.root, self.paths[indices], self.targets[indices], self.spec, self.max_pixels)


class StoredImages(FolderImages):
    """Image files that lie in memory: `stored (n,) uint8` has the bytes of all, and `places (N, 2) int64`
    says where those of each begin and end; `paths` are their names."""

    def __init__(self, stored: Tensor, places: Tensor, paths: Tensor, *common: Any) -> None:
        super().__init__(Path(), paths, *common)
        self.stored, self.places, self.prefix = stored, places, ""

    def read(self, index: int) -> Tensor:
        how = self.spec.channels, self.max_pixels, self.spec.bits
        return decode(self.name(index), *how, data=self.content(index))

    def content(self, index: int) -> np.ndarray:
        start, end = self.places[index].tolist()
        return self.stored[start:end].numpy()

    def contents(self) -> Iterator[bytes | memoryview]:
        yield self.paths.numpy().data
        yield (self.places[:, 1] - self.places[:, 0]).numpy().data
        for index in range(0, len(self), len(self) // 1000 + 1):
            yield self.content(index).data

    def part(self, indices: Tensor) -> Self:
        parts = self.places[indices], self.paths[indices], self.targets[indices]
        return type(self)(self.stored, *parts, self.spec, self.max_pixels)


class PictureModule(ImageDataModule):
    """A source of pictures of any size, which workers bring to one size.

    Args:
        on_error: what an image does that can't be read: "raise" ends the run; "skip" lists it in the run's
            unreadable.csv, and in training puts another image of its batch in its place.
        max_errors: the share of a split's images above which the run ends nevertheless.
        decode: what decodes JPEGs: "cpu", the workers; "cuda", the GPU that trains, which crops them too.
        Other arguments: `ImageDataModule`.
    """

    of_weights: tuple[str, ...] = ("mean", "std", "interpolation", "crop_ratio", "fit")

    def __init__(
        self,
        *,
        on_error: OnError = "raise",
        max_errors: Share = 0.01,
        decode: Literal["cpu", "cuda"] = "cpu",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.on_error, self.max_errors, self.decode = on_error, max_errors, decode
        if decode == "cuda":
            check_device_decoder(self.augment)

    def read_by_workers(self, split: str) -> Dataset[Any]:
        images = self.sets[split]
        if self.decode == "cuda" and isinstance(images, FolderImages):
            return EncodedImages(images)
        return images

    def _loader(self, split: str, sampler: EpochSampler, drop_last: bool) -> DataLoader[Batch]:
        loader, images = super()._loader(split, sampler, drop_last), self.sets[split]
        if not isinstance(loader, Loader) or not isinstance(images, FolderImages):
            return loader
        if self.decode == "cuda":
            decoder = DeviceDecoder(images, training_device(self.trainer))
            loader.decoded, loader.pin_memory = decoder.batches, False
        if self.on_error == "skip":
            images.on_error = "skip"
            folder = Path("." if self.trainer is None else self.trainer.default_root_dir)
            name = self.tested if split == "test" else split
            loader.note = Unreadable(name, images, sampler.training, self.max_errors, folder).note
        return loader

    def default_workers(self) -> int:
        return min(cores(), 16)


class ImageFolder(PictureModule):
    """Any folder of images with one folder for each class; splits that it lacks are cut from train.

    Args:
        root: the folder.
        exclude: a file that lists images to leave out (`exclude_list`), such as `imgcls inspect` writes.
        max_pixels: an image of more is not decoded: it counts as one that can't be read.
        bits: those that files of more than 8 bits use: 2**bits - 1 is white; null: as `decode` says.
        Other arguments: `PictureModule`.
    """

    layout = "root/<class>/… or root/{train,val,test}/<class>/…"
    of_weights = (*PictureModule.of_weights, "image_size")
    val_is_test = False  # whether the set's folder val is the test split

    def __init__(
        self,
        *,
        root: Place,
        exclude: Place | None = None,
        max_pixels: Positive = MAX_PIXELS,
        bits: Annotated[int, Field(ge=1, le=32, strict=True)] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.max_pixels = Path(root).expanduser(), max_pixels
        if not self.root.is_dir():
            raise UserError(f"data.root={root}: there is no such folder; expected {self.layout}")
        self.folders, self.classes = self.find()
        self.exclude, self.excluded = exclude, [self.root / entry for entry in exclude_list(exclude)]
        for entry in self.excluded:
            if not any(entry.is_relative_to(folder) for folder in self.folders.values()):
                raise self.no_such_entry(entry)
        self.spec = DataSpec(self.class_names(), **FACTS | {"bits": bits} | self.facts)

    def find(self) -> tuple[dict[str, Path], list[str]]:
        """Returns the folder of each split that there is, and the names of the class folders, sorted."""
        folders = split_folders(self.root)
        name_left_out(self.root, folders.values())
        return folders, class_folders(folders["train"])

    def class_names(self) -> tuple[str, ...]:
        """Returns what people call the classes, in the order of the class folders."""
        return tuple(self.classes)

    def load(self, split: str) -> FolderImages | None:
        if split not in self.folders:
            return None
        folder = self.folders[split]
        paths, targets = self.labelled(folder)
        if self.excluded:
            inside = [entry for entry in self.excluded if entry.is_relative_to(folder)]
            excluded = np.array([os.fsencode(os.path.relpath(entry, folder)) for entry in inside], np.bytes_)
            known = np.isin(excluded, as_names(paths))
            if not known.all():
                raise self.no_such_entry(inside[known.argmin()])
            kept = torch.from_numpy(~np.isin(as_names(paths), excluded))
            paths, targets = paths[kept], targets[kept]
        filled = set(targets.unique().tolist()) if split == "train" else range(len(self.classes))
        if empty := [name for label, name in enumerate(self.classes) if label not in filled]:
            kind = " that is not excluded" if self.excluded else ""
            expected = f"expected files that end in one of {' '.join(sorted(EXTENSIONS))}"
            raise UserError(f"{folder / empty[0]} holds no image{kind}; {expected}")
        return FolderImages(folder, paths, targets, self.spec, self.max_pixels)

    def labelled(self, folder: Path) -> tuple[Tensor, Tensor]:
        """Returns the paths of the images of a split, bytes `(N, W) uint8` relative to its folder, and their
        targets. UserError: a class is not known."""
        names = class_folders(folder)
        if unknown := sorted(set(names) - set(self.classes)):
            others = f"which {self.folders['train']} does not; expected the same classes"
            raise UserError(f"{folder} has the class {unknown[0]!r}, {others}")
        counts, paths = folder_index(folder, names)
        labels = {name: label for label, name in enumerate(self.classes)}  # val and test may lack some
        return paths, torch.tensor([labels[name] for name in names]).repeat_interleave(counts)

    def name_of(self, images: FolderImages, index: int) -> str:
        """Returns the path of an image relative to the root."""
        return os.path.relpath(images.name(index), self.root)

    def no_such_entry(self, entry: Path) -> UserError:
        named = f"data.exclude={self.exclude} names {os.path.relpath(entry, self.root)!r}"
        advice = "take the line out of it, or make the list anew with imgcls inspect"
        return UserError(f"{named}, which is no image of a split of {self.root}; {advice}")


def exclude_list(path: str | None) -> list[str]:
    """Returns the files that a list names, one in a line, relative to the root. A comment is what follows a
    tab and `#`, and a line that starts with `#`; a path that starts so is written `./#…`."""
    try:
        lines = Path(path).expanduser().read_bytes().split(b"\n") if path is not None else []
    except OSError as error:
        expected = "expected a text file with a path relative to data.root a line"
        raise UserError(f"data.exclude={path} can't be read ({error.strerror}); {expected}") from error
    names = [os.fsdecode(line.split(b"\t#")[0].rstrip(b"\r")) for line in lines if not line.startswith(b"#")]
    return sorted({os.path.normpath(name) for name in names if name.strip()})
