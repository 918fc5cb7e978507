"""PackedData source: sets that `imgcls pack` made, as pixels or JPEG.

manifest.json   the facts of the set, and the size and checksum of each other file (loading/manifest.py)
train.npy       the table of a split: a `RECORD` and a name for each image
train.bin       the images of a split, one after another; pixels as (H, W, C)
"""

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from imgcls.data.batch import in_channels
from imgcls.data.imagefolder import FolderImages, PictureModule
from imgcls.data.loading.decode import decode_jpeg
from imgcls.data.loading.manifest import check_files, is_record, read_manifest
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.data.loading.splits import Cut, OptionalCut
from imgcls.data.module import Place
from imgcls.errors import UnreadableImage, UserError
from imgcls.processes import rank
from imgcls.spec import DataSpec, as_word

log = logging.getLogger(__name__)


@dataclass
class Pack:
    """The files of a split, mapped into memory: workers read the same pages. A pickle holds no content."""

    root: Path
    split: str
    pixels: list[int] | None = None  # the shape (H, W, C) of images, 0 for what differs; None: they are JPEGs

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self) if field.init)

    @cached_property
    def records(self) -> np.ndarray:
        path = self.root / f"{self.split}.npy"
        try:
            table = np.lib.format.open_memmap(path, mode="r").view(np.ndarray)  # it reads no Python objects
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no table ({type(error).__name__}); pack again") from error
        if table.ndim != 1 or not is_record(table.dtype.descr):
            raise UserError(f"{path} is no table of images; pack again")
        return table

    @cached_property
    def content(self) -> Tensor:
        """All bytes `(n,) uint8` of the images."""
        content = np.memmap(self.root / f"{self.split}.bin", np.uint8, mode="r").view(np.ndarray)
        with warnings.catch_warnings():  # torch warns of memory that can't be written to
            warnings.filterwarnings("ignore", message=".*not writable")
            return torch.from_numpy(content)

    @property
    def alike(self) -> Tensor | None:
        """All images `(N, H, W, C)`, where they are of one size: a batch is one gather."""
        return self.content.view(-1, *self.pixels) if self.pixels and all(self.pixels) else None

    def stored(self, index: int) -> Tensor:
        """Returns the bytes `(n,) uint8` of an image."""
        offset, count = self.records[index].tolist()[:2]
        return self.content[offset : offset + count]

    def image(self, index: int, channels: int) -> Tensor:
        """Returns an image `(C, H, W) uint8`; of pixels, a view of the file."""
        content = self.stored(index)
        if self.pixels:
            height, width = self.records[index].tolist()[2:4]
            return content.view(height, width, self.pixels[2]).permute(2, 0, 1)
        return self.decoded(content, index, channels)

    def decoded(self, content: Tensor, index: int, channels: int) -> Tensor:
        """Returns the image in the bytes of a JPEG, as `decode` reads it from a file."""
        try:
            return decode_jpeg(content, channels)
        except RuntimeError as error:
            what = f"{self.root / self.split}.bin: the image {os.fsdecode(self.records['name'][index])}"
            advice = "data.verify=true finds damaged files; pack again"
            raise UnreadableImage(f"{what} is damaged; {advice}") from error


class PackedImages(FolderImages):
    """The images of a pack at `order (N,) int64`, each brought to `spec.image_size`."""

    def __init__(self, pack: Pack, order: Tensor, spec: DataSpec) -> None:
        self.pack, self.order, self.spec = pack, order, spec
        self.targets = torch.from_numpy(pack.records["label"][order.numpy()]).long()
        self.evaluate = self.transform = evaluation_transform(spec)

    @property
    def as_stored(self) -> bool:
        size, alike = self.spec.size, self.pack.alike
        fits = alike is not None and alike.shape[1:3] == size == self.spec.resize
        return fits and self.transform is self.evaluate

    def images(self, keys: Tensor) -> Tensor:
        if not self.as_stored:
            return super().images(keys)
        assert self.pack.alike is not None
        stored = self.pack.alike[self.order[keys % len(self)]]
        return in_channels(stored.permute(0, 3, 1, 2), self.spec.channels)

    def read(self, index: int) -> Tensor:
        channels = self.spec.channels
        return in_channels(self.pack.image(int(self.order[index]), channels), channels)

    def content(self, index: int) -> np.ndarray:
        """Returns the bytes of an image as it is stored."""
        return self.pack.stored(int(self.order[index])).numpy()

    def name(self, index: int) -> str:
        return os.fsdecode(self.pack.records["name"][int(self.order[index])])

    def contents(self) -> Iterator[memoryview]:
        yield self.pack.records[self.order.numpy()].data

    def part(self, indices: Tensor) -> Self:
        return type(self)(self.pack, self.order[indices], self.spec)


class PackedData(PictureModule):
    """A set that `imgcls pack` made, as pixels or JPEG. Splits that it lacks are cut as from the folder.

    Args:
        root: the directory of the pack.
        verify: compare the checksum of each file before anything is read.
        Other arguments: `PictureModule`; null: as packed.

    Raises:
        UserError: no pack there, one of another version or format, a file missing, cut or changed.
    """

    formats: tuple[str, ...] = ("pixels", "jpeg")

    def __init__(
        self,
        *,
        root: Place,
        verify: bool = False,
        val_fraction: OptionalCut | None = None,
        test_fraction: Cut | None = None,
        **common: Any,
    ) -> None:
        self.root, self.verify = self.place(root), verify
        self.manifest = read_manifest(self.root, self.formats)
        val_fraction = self.manifest.val_fraction if val_fraction is None else val_fraction
        test_fraction = self.manifest.test_fraction if test_fraction is None else test_fraction
        super().__init__(val_fraction=val_fraction, test_fraction=test_fraction, **common)
        if self.decode == "cuda" and self.manifest.format != "jpeg":
            given = f"data.decode=cuda: data.root={root} was packed as {self.manifest.format}"
            raise UserError(f"{given}; expected format=jpeg, or data.decode=cpu")
        self.spec = replace(self.manifest.spec, **self.facts)
        size, wanted = self.manifest.size, self.spec
        if "image_size" not in self.facts and size is not None and size < min(wanted.size):
            self.spec = wanted.at_most(size)
            if rank() == 0:
                used = f"data.root={root} was packed at {size} pixels and is used so"
                log.warning("%s; data.image_size=%s enlarges the images", used, as_word(wanted.image_size))

    def place(self, root: str) -> Path:
        """Returns the local directory with the manifest."""
        return Path(root).expanduser()

    def prepare_data(self) -> None:
        if not self.sets:  # else all was checked before it was read
            check_files(self.root, self.manifest.files, self.verify)

    def load(self, split: str) -> PackedImages | None:
        if split not in self.manifest.splits:
            return None
        shape = self.manifest.splits[split].shape if self.manifest.format == "pixels" else None
        pack = Pack(self.root, split, shape)
        return PackedImages(pack, torch.arange(len(pack.records)), self.spec)

    def fingerprint(self) -> dict[str, Any]:
        checksums = {name: asdict(facts) for name, facts in self.manifest.files.items()}
        return super().fingerprint() | {"files": checksums}  # the table says nothing of pixels

    def default_workers(self) -> int:
        as_stored = all(isinstance(part, PackedImages) and part.as_stored for part in self.sets.values())
        return 0 if as_stored else super().default_workers()
