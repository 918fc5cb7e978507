"""Layout of a folder set: finds its splits and classes, `root/<class>/…` or `root/<split>/<class>/…`.

A folder is a split by its name, in upper or lower case, and only where it holds class folders: a class may be
called train or valid. Where other folders hold images beside it, it may still be a class (`named_splits`).

The list of the image files is kept in the user's cache, which may be deleted at any time. It holds as long as
no directory in the folder changed; one `stat` for each directory tells.
"""

import hashlib
import logging
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imgcls.config.paths import cache_dir
from imgcls.data.loading.decode import EXTENSIONS, is_image
from imgcls.data.loading.splits import SPLITS
from imgcls.errors import UserError
from imgcls.processes import rank

log = logging.getLogger(__name__)

NAMES = {  # where a split has two folders, the first of these names counts
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
WORDS = "|".join(name for names in NAMES.values() for name in names)
LIKE_A_SPLIT = re.compile(rf"({WORDS})(?:[-_ ]?(?:images?|sets?|data|[0-9]+))?", re.IGNORECASE)
# Clocks of file systems are coarse (FAT: 2 s): a directory listed this soon after a change can change again
# and keep its time stamp, so the list is not kept.
SETTLED_NS = 2_000_000_000


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted; hidden ones are left out."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return sorted(entry.name for entry in entries if entry.is_dir())


def named(root: Path, names: Iterable[str]) -> list[Path]:
    """Returns the folders of `root` with these names, in upper or lower case, in the order of the names."""
    found = subfolders(root)
    return [root / folder for name in names for folder in reversed(found) if folder.lower() == name]


def candidates(root: Path) -> dict[str, Path]:
    """Returns the folder of each split that is there by its name, with class folders in it."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        for path in named(root, NAMES[split]):
            if any(images_below(*[path / name for name in subfolders(path)])):
                found.setdefault(split, path)
    return found


def named_splits(root: Path) -> dict[str, Path]:
    """Returns the folder of each split; none where those with the names of splits are classes, as the folders
    beside them are: not where two have classes in common; else where no train folder has two classes and any
    folder beside them holds images, or where two folders each hold a tenth of what train holds."""
    found = candidates(root)
    inside = [name for path in found.values() for name in subfolders(path)]
    if not found or len(inside) > len(set(inside)) > 1:
        return found
    beside = [root / name for name in subfolders(root) if not LIKE_A_SPLIT.fullmatch(name)]
    counts = [number for folder in beside if (number := len([*images_below(folder)]))]
    classes = [found["train"] / name for name in subfolders(found["train"])] if "train" in found else []
    flat = len(classes) < 2 and bool(counts)
    if len(classes) > 1 and len(counts) > 1:
        tenth = len([*images_below(*classes)]) / 10
        flat = sum(number >= tenth for number in counts) > 1
    return {} if flat else found


def images_below(*folders: Path) -> Iterator[str]:
    for folder in folders:
        for _, _, files in os.walk(folder):
            yield from filter(is_image, files)


def split_folders(root: Path) -> dict[str, Path]:
    """Returns the folder of each split that there is; a root without split folders is all train. UserError:
    there is no train folder, or what would be the classes has the names of splits."""
    found = named_splits(root) or {"train": root}
    if "train" not in found:
        others = ", ".join(path.name for path in found.values())
        raise UserError(f"{root} has {others} but no train folder; expected root/train/<class>/…")
    classes = subfolders(found["train"])
    matches = [LIKE_A_SPLIT.fullmatch(name) for name in classes]
    if all(matches) and len({match[1].lower() for match in matches if match}) > 1:
        fault = f"has the folders {', '.join(classes[:5])}: splits, no classes"
        raise UserError(f"{found['train']} {fault}; expected root/train/<class>/…")
    return found


def left_out(root: Path, folders: Iterable[Path]) -> list[str]:
    """Returns the folders beside those of the splits, which are not read."""
    used = set(folders)
    return [] if root in used else [name for name in subfolders(root) if root / name not in used]


def name_left_out(root: Path, folders: Iterable[Path]) -> None:
    """Warns of folders beside the splits that are not read, and of classes that are called like splits."""
    used = list(folders)
    if rank() == 0 and root in used and (names := [path.name for path in candidates(root).values()]):
        line = "%s is read as one set without splits: %s, too, are classes, as are the folders beside"
        log.warning(line, root, ", ".join(names))
    if rank() == 0 and (names := left_out(root, used)):
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        beside = " and ".join(path.name for path in used)
        log.warning("%s is read as the splits %s; left out beside them: %s", root, beside, listed)


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the class folders, sorted."""
    if not (names := subfolders(folder)):
        raise UserError(f"{folder} has no class folders; expected {folder}/<class>/<image files>")
    return names


def folder_index(folder: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Returns how many image files each of the folders `classes` of a folder has, `(K,) int64`, and the paths
    of all, class by class and sorted, below `folder`: bytes `(N, W) uint8`, filled with zeros."""
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
        try:  # under another name, then renamed: other processes see a whole file or none
            place = _place(folder, classes)
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as own:
                save_file(tensors | {"crc32": _checksum(tensors)}, Path(own) / "index")
                (Path(own) / "index").replace(place)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            log.warning("the list of image files can't be kept (%s), so each start makes it anew", reason)
    return tensors["counts"], tensors["paths"]


def list_images(folder: Path, name: str, errors: list[OSError]) -> tuple[list[str], list[str]]:
    """Returns the image files below `folder/name`, sorted, and all directories, as paths below `folder`.
    Hidden ones are left out; links to files are taken, links to directories below are not followed."""
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
