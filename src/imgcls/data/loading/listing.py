"""Listing of the image files below a folder: makes it once and keeps it in the user's cache.

The cache may be deleted at any time. A kept list holds as long as no directory in the folder changed; one
`stat` for each directory tells.
"""

import hashlib
import logging
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imgcls.config.paths import cache_dir
from imgcls.data.loading.decode import EXTENSIONS, is_image

log = logging.getLogger(__name__)

# Clocks of file systems are coarse (FAT: 2 s): a directory listed this soon after a change can change again
# and keep its time stamp, so the list is not kept.
SETTLED_NS = 2_000_000_000


def folder_index(folder: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Returns how many image files each of the folders `classes` of a folder has, `(K,) int64`, and the paths
    of all, one class after another and sorted within it, relative to `folder`: bytes `(N, W) uint8`, filled
    with zeros.

    Workers share them, as any tensor.
    """
    try:
        kept = load_file(_place(folder, classes))  # mapped
        directories = [os.fsdecode(name) for name in as_names(kept["directories"]).tolist()]
        whole = torch.equal(_checksum(kept), kept["crc32"])
        if whole and torch.equal(_stamps(folder, directories), kept["stamps"]):
            return kept["counts"], kept["paths"]
    except (OSError, RuntimeError, KeyError, SafetensorError):
        pass  # there is none, or it is damaged
    started, errors = time.time_ns(), list[OSError]()
    listed = [list_images(folder, name, errors) for name in classes]
    directories = [".", *(directory for _, seen in listed for directory in seen)]
    tensors = {
        "counts": torch.tensor([len(found) for found, _ in listed]),
        "paths": as_bytes([path for found, _ in listed for path in found]),
        "directories": as_bytes(directories),
        "stamps": _stamps(folder, directories),
    }
    if not errors and 0 < int(tensors["stamps"].min()) <= int(tensors["stamps"].max()) < started - SETTLED_NS:
        _save(tensors, folder, classes)
    return tensors["counts"], tensors["paths"]


def list_images(folder: Path, name: str, errors: list[OSError]) -> tuple[list[str], list[str]]:
    """Returns the image files below `folder/name`, sorted, and all directories, as paths below `folder`.

    Hidden ones are left out; links to files are taken, links to directories below `folder/name` not followed.
    """
    found, seen = [], []
    for directory, folders, files in os.walk(folder / name, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen.append(os.path.relpath(directory, folder))
        found += [f"{seen[-1]}{os.sep}{file}" for file in files if is_image(file)]
    return sorted(found), seen


def as_bytes(names: list[str]) -> Tensor:
    array = np.array([os.fsencode(name) for name in names], np.bytes_)
    return torch.from_numpy(array.view(np.uint8).reshape(len(names), array.itemsize))


def as_names(paths: Tensor) -> np.ndarray:
    """Returns bytes `(N, W) uint8` as `(N,)` of numpy's type for bytes; nothing is copied."""
    return paths.numpy().view(f"S{paths.shape[1]}")[:, 0]


def _stamps(folder: Path, directories: list[str]) -> Tensor:
    """Returns when each directory changed, `(D,) int64` ns. Unlike the time of the last change of its
    entries, which unpackers and rsync restore, this one can't be set."""
    return torch.tensor([(folder / name).stat().st_ctime_ns for name in directories])


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    names = sorted(tensors.keys() - {"crc32"})
    return torch.tensor([zlib.crc32(tensors[name].numpy().data) for name in names])


def _place(folder: Path, classes: list[str]) -> Path:
    depends_on = repr((str(folder.absolute()), classes, sorted(EXTENSIONS)))
    return cache_dir() / f"{hashlib.sha256(depends_on.encode()).hexdigest()}.safetensors"


def _save(tensors: dict[str, Tensor], folder: Path, classes: list[str]) -> None:
    """Writes the cache under another name, then renames it: other processes see a whole file or none."""
    try:
        place = _place(folder, classes)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as own:
            save_file(tensors | {"crc32": _checksum(tensors)}, Path(own) / "index")
            (Path(own) / "index").replace(place)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        log.warning("the list of image files can't be kept (%s), so each start makes it anew", reason)
