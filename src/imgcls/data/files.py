"""Files source: image files by their paths, found while they are read and prepared as in evaluation."""

import glob
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imgcls.data.batch import keep_batch
from imgcls.data.loading.decode import EXTENSIONS, MAX_PIXELS, decode, is_image
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.errors import UnreadableImage, UserError
from imgcls.processes import cores
from imgcls.spec import DataSpec

Failure = tuple[str, str]  # a path, and why it could not be read
FileBatch = tuple[Tensor | None, list[str], list[Failure]]


class Files:
    """A data set whose keys are paths: decoded, resized and cropped as in evaluation."""

    def __init__(self, spec: DataSpec, max_pixels: int = MAX_PIXELS, crops: bool = False) -> None:
        if spec.channels not in (1, 3):
            taken = f"the checkpoint takes images of {spec.channels} channels"
            raise UserError(f"{taken}; image files have 1 or 3")
        self.spec, self.max_pixels, self.transform = spec, max_pixels, evaluation_transform(spec, crops)

    def __getitems__(self, paths: list[str]) -> FileBatch:
        """Returns the images `(N, C, H, W) uint8` that could be read, with `crops` the centre and corners of
        each `(N, 5, C, H, W)`, their paths, and the others."""
        images, read, failures = [], [], []
        for path in paths:
            try:
                image = decode(path, self.spec.channels, self.max_pixels, self.spec.bits)
                images.append(self.transform(image))
                read.append(path)
            except UnreadableImage as error:
                failures.append((path, error.reason()))
        return torch.stack(images) if images else None, read, failures


def file_loader(
    paths: Iterator[str],
    spec: DataSpec,
    batch_size: int,
    num_workers: int | None,
    max_pixels: int,
    crops: bool = False,
) -> "DataLoader[FileBatch]":
    """Returns batches in the order of the paths. This process asks for a path when a worker is free."""
    return DataLoader(
        Files(spec, max_pixels, crops),  # type: ignore[arg-type]  # torch's type for keys is int
        sampler=paths,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=keep_batch,
        num_workers=min(cores(), 16) if num_workers is None else num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def images_of(key: str, source: str, failures: list[Failure]) -> Iterator[str]:
    """Returns the paths of a source (`find_images`); folders that can't be listed go to `failures`.
    UserError: the source, given as the config's `key`, is not there or has no image."""
    place = source if source == "-" else str(Path(source).expanduser())
    if source != "-" and not os.path.exists(place) and not glob.has_magic(source):  # noqa: PTH110
        raise UserError(f"{key}={source}: there is no such file or folder")
    paths = find_images(place, failures)
    if (first := next(paths, None)) is not None:
        return itertools.chain([first], paths)
    if failures:
        raise UserError(f"{key}={source}: {failures[0][0]} can't be read ({failures[0][1]})")
    wanted = "a path a line" if source == "-" else f"files that end in one of {' '.join(sorted(EXTENSIONS))}"
    raise UserError(f"{key}={source}: there is no image; expected {wanted}")


def find_images(source: str, failures: list[Failure]) -> Iterator[str]:
    """Yields the paths of a file, a folder, a glob, or for `-` those that standard input lists. Of a folder
    files come first, then folders, by name; as in training, without hidden files and links to folders."""
    if source == "-":
        yield from filter(None, (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer))
    elif Path(source).is_dir():
        errors = list[OSError]()
        for directory, folders, files in os.walk(source, onerror=errors.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(directory, name) for name in sorted(files) if is_image(name))
        failures += [(str(error.filename), error.strerror or str(error)) for error in errors]
    elif Path(source).exists():
        yield source
    else:
        head, tail = os.path.split(source)
        heads = sorted(glob.iglob(os.path.join(head, ""), recursive=True)) if head else [""]  # noqa: PTH207
        for folder in heads:
            found = glob.iglob(os.path.join(glob.escape(folder), tail), recursive=True)  # noqa: PTH207
            yield from sorted(path for path in found if is_image(os.path.basename(path)))  # noqa: PTH119
