"""The image files below a folder, listed once: millions of paths as two tensors, kept in the user's cache.

The cache is `$XDG_CACHE_HOME/imgcls`, or `~/.cache/imgcls`; it may be deleted at any time. What it says of a
folder holds as long as no directory in it was touched since, which takes one `stat` a directory to find out.
"""

import contextlib
import functools
import hashlib
import logging
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imgcls.data.decode import EXTENSIONS
from imgcls.run import cache_dir

log = logging.getLogger(__name__)

FORMAT = 1
# Clocks of file systems are coarse (FAT: 2 s): a directory listed this soon after a change can change again
# and keep its time stamps, so what was listed is not kept.
SETTLED_NS = 2_000_000_000


class Paths:
    """Paths `(N,)` in one blob of bytes. A part of them is an index into it: nothing is copied, also into workers."""

    def __init__(self, blob: Tensor, ends: Tensor, chosen: Tensor | None = None) -> None:
        self.blob, self.ends, self.chosen = blob, ends, chosen  # uint8, int64 (0 comes first), int64

    def __len__(self) -> int:
        return len(self.ends) - 1 if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> bytes:
        place = index if self.chosen is None else int(self.chosen[index])
        start, end = self.ends[place : place + 2].tolist()
        return self.blob[start:end].numpy().tobytes()

    def part(self, indices: np.ndarray) -> "Paths":
        """Returns the paths at `indices (M,)`."""
        index = torch.from_numpy(indices)
        return Paths(self.blob, self.ends, index if self.chosen is None else self.chosen[index])


def folder_index(folder: Path, classes: list[str]) -> tuple[Tensor, Paths]:
    """Returns how many image files each of the folders `classes` of a folder has, `(K,) int64`, and the paths of
    all, one class after another and sorted within it, relative to `folder`."""
    tensors = _load(folder, classes)
    if tensors is None:
        tensors, settled = _list(folder, classes)
        if settled:
            _save(tensors, folder, classes)
    return tensors["counts"], Paths(tensors["blob"], tensors["ends"])


def list_images(folder: Path, name: str, errors: list[OSError]) -> tuple[list[str], list[str]]:
    """Returns the image files below `folder/name`, sorted, and all directories seen, as paths relative to `folder`.

    Hidden ones are left out; links to files are taken, links to directories below `folder/name` not followed.
    """
    found, seen = [], []
    for directory, folders, files in os.walk(folder / name, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen.append(os.path.relpath(directory, folder))
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith("."):
                found.append(f"{seen[-1]}{os.sep}{file}")
    return sorted(found), seen


def _list(folder: Path, classes: list[str]) -> tuple[dict[str, Tensor], bool]:
    """Lists all; also returns whether what was found can be told from any later state by its time stamps."""
    started, errors = time.time_ns(), list[OSError]()
    paths, directories, counts = list[str](), ["."], list[int]()
    for name in classes:
        found, seen = list_images(folder, name, errors)
        paths += found
        directories += seen
        counts.append(len(found))
    encoded = [os.fsencode(path) for path in paths]
    stamps = _stamps(folder, directories)
    tensors = {
        "blob": _bytes(b"".join(encoded)), "ends": torch.from_numpy(np.cumsum([0, *map(len, encoded)])),
        "counts": torch.tensor(counts),
        "directories": _bytes(b"\0".join(map(os.fsencode, directories))), "stamps": stamps,
    }  # fmt: skip
    # A time of 0: the file system keeps none, or the directory is gone.
    return tensors, not errors and int(stamps.min()) > 0 and int(stamps.max()) < started - SETTLED_NS


def _stamps(folder: Path, directories: list[str]) -> Tensor:
    """Returns `(D, 2) int64`: when each directory's entries changed, and when it changed in any way, in ns.

    The second can't be set: unpackers and rsync restore the first after they have added files.
    """
    stamps = np.zeros((len(directories), 2), np.int64)
    for i, directory in enumerate(directories):
        with contextlib.suppress(OSError):
            status = (folder / directory).stat()
            stamps[i] = status.st_mtime_ns, status.st_ctime_ns
    return torch.from_numpy(stamps)


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(content), np.uint8))


def _place(folder: Path) -> Path:
    return cache_dir() / f"{hashlib.blake2b(os.fsencode(folder.absolute()), digest_size=16).hexdigest()}.safetensors"


def _facts(classes: list[str], tensors: dict[str, Tensor]) -> dict[str, str]:
    """Returns what a cache file must say of itself to be believed."""
    checksum = functools.reduce(lambda crc, name: zlib.crc32(tensors[name].numpy().data, crc), sorted(tensors), 0)
    return {"depends_on": repr((FORMAT, classes, sorted(EXTENSIONS))), "crc32": str(checksum)}


def _load(folder: Path, classes: list[str]) -> dict[str, Tensor] | None:
    """Returns the tensors of the cache, mapped from its file, or None where it is not there, damaged or too old."""
    try:
        with safe_open(_place(folder), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if file.metadata() != _facts(classes, tensors):
                return None
    except (OSError, RuntimeError, SafetensorError):
        return None
    directories = tensors["directories"].numpy().tobytes().split(b"\0")
    return tensors if torch.equal(_stamps(folder, [os.fsdecode(d) for d in directories]), tensors["stamps"]) else None


def _save(tensors: dict[str, Tensor], folder: Path, classes: list[str]) -> None:
    """Writes the cache under a name of its own, then renames it: another process sees all of it or nothing."""
    try:
        place = _place(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as own:
            save_file(tensors, Path(own) / place.name, _facts(classes, tensors))
            (Path(own) / place.name).replace(place)
    except (OSError, RuntimeError, SafetensorError) as error:
        _tell(" ".join(str(error).split()))


@functools.cache  # once a process
def _tell(reason: str) -> None:
    log.warning("the list of image files can't be kept (%s), so each start makes it anew", reason)
