"""Base class of sources whose images are rows, of a table or of a library's set."""

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from imgcls.data.imagefolder import FACTS, FolderImages, PictureModule, StoredImages
from imgcls.data.loading.decode import MAX_PIXELS
from imgcls.data.loading.splits import SPLITS
from imgcls.data.module import Positive
from imgcls.spec import DataSpec

Column = Annotated[str, Field(min_length=1)]  # a name


class RowsModule(PictureModule):
    """A source whose images are rows: each may have a split and a group of its own.

    Args:
        max_pixels, bits: as in `ImageFolder`.
        Other arguments: `PictureModule`.
    """

    of_weights = (*PictureModule.of_weights, "image_size")
    root = Path()
    place: Path | str  # where the rows come from
    rows: FolderImages  # all images
    row_splits: np.ndarray | None = None  # (N,) int64, places in SPLITS; None: splits are cut
    row_groups: np.ndarray | None = None  # (N,) int64; None: each image is alone

    def __init__(
        self,
        *,
        max_pixels: Positive = MAX_PIXELS,
        bits: Annotated[int, Field(ge=1, le=32, strict=True)] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.max_pixels, self.bits = max_pixels, bits

    def spec_of(self, class_names: tuple[str, ...]) -> DataSpec:
        """Returns the spec of the classes, with the facts that the config gives."""
        return DataSpec(class_names, **FACTS | {"bits": self.bits} | self.facts)

    def name_of(self, images: FolderImages, index: int) -> str:
        """Returns the name of an image in lists: of a file the path relative to the root."""
        name = images.name(index)
        return name if isinstance(images, StoredImages) else os.path.relpath(name, self.root)

    def load(self, split: str) -> FolderImages | None:
        chosen = np.arange(len(self.rows))
        if self.row_splits is not None:
            chosen = np.flatnonzero(self.row_splits == SPLITS.index(split))
        elif split != "train":
            return None
        if not len(chosen):
            return None
        images = self.rows.part(torch.from_numpy(chosen))
        if self.row_groups is not None:
            images.groups = torch.from_numpy(self.row_groups[chosen])
        return images
