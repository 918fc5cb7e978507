"""Checkpoints: enough by themselves, and never trusted with code."""

import os
import shlex
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from imgcls.backbones.build import load_tensors, unloadable
from imgcls.errors import UserError
from imgcls.runs.record import shown


def find_checkpoint(given: str) -> Path:
    """Returns the checkpoint that a path means: the file itself, or the best one of a run directory."""
    path = Path(given).expanduser()
    if "://" in given:
        raise UserError(f"checkpoint={given}: addresses are not read; fetch the file first")
    if path.is_dir():
        for folder in (path / "checkpoints", path):
            if (folder / "best.ckpt").is_file():
                return folder / "best.ckpt"
            if (folder / "last.ckpt").is_file():
                return best_of_many(folder / "last.ckpt")
        raise UserError(f"checkpoint={given}: the folder has no checkpoints/best.ckpt or last.ckpt")
    if not path.is_file():
        raise UserError(f"checkpoint={given}: there is no such file")
    return path


def best_of_many(last: Path) -> Path:
    """Returns the best of several checkpoints that were kept (`save_top_k`), as the last one says, or the last one."""
    if all(path.name in ("last.ckpt", "previous.ckpt") for path in last.parent.glob("*.ckpt")):
        return last
    state = load_content(last).get("callbacks", {})
    names = [Path(value["best_model_path"]).name for key, value in state.items() if key.startswith("ModelCheckpoint")]
    return next((last.with_name(name) for name in names if name and last.with_name(name).is_file()), last)


def load_content(path: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds, without running what it may carry.

    Raises:
        UserError: the file is damaged, carries code (which is not run), or was not written by a training of ours.
    """
    try:
        content = load_tensors(path)
    except Exception as error:  # many types, one for each way of being damaged
        raise UserError(f"checkpoint={path}: {unloadable(path, error)}") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise UserError(
            f"checkpoint={path}: it was not written by imgcls train; for a state dict use backbone.weights={path}"
        )
    return content


def add_to_checkpoint(path: Path, **entries: Any) -> None:
    """Adds plain entries to a checkpoint's file, which is whole at any time."""
    write_whole(load_tensors(path) | entries, path)


STATES = ("state_dict", "current_model_state")  # with EMA, the first has the means


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints so that a file of that name is always whole. What replaces `last.ckpt` keeps it as
    `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_whole(checkpoint, Path(path))


def write_whole(content: dict[str, Any], path: Path) -> None:
    """Writes to another name, waits until the disk has it, and renames.

    Raises:
        UserError: the disk takes no more; it says how much is free, and from what the run can go on.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save has an error of its own for a write that came short
        said = f"{shown(path)} could not be written: {no_room(path.parent, error)}"
        if newest(path.parent)[0] != partial:
            partial.unlink(missing_ok=True)
        raise UserError(said) from error


def put_in_place(partial: Path, path: Path) -> None:
    """Gives a whole file its name; a `last.ckpt` of before becomes `previous.ckpt`."""
    if path.name == "last.ckpt" and path.exists():
        path.replace(path.with_name("previous.ckpt"))
    partial.replace(path)


def no_room(checkpoints: Path, error: Exception) -> str:
    """Returns how full the disk is of a run's checkpoints, and what is left to go on from."""
    folder = next(place for place in (checkpoints, *checkpoints.absolute().parents) if place.is_dir())
    disk = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_mount())
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write came short"
    said = f"the disk at {disk} has {shutil.disk_usage(folder).free:,} bytes free ({reason}); make room: "
    kept, resume = newest(checkpoints)[0], shlex.quote(f"resume={shown(checkpoints.parent)}")
    left = f"the run goes on from {shown(kept)}" if kept else "no checkpoint to go on from is left, the run begins anew"
    return f"{said}{left} with imgcls train {resume}"


def newest(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """Returns the newest whole checkpoint to go on from, and what is wrong with those that are newer.

    A `last.partial` that is whole is the newest: the process was killed before it had its name.
    """
    wrong = dict[Path, str]()
    for path in (folder / name for name in ("last.partial", "last.ckpt", "previous.ckpt")):
        if path.exists():
            if (reason := damage(path)) is None:
                return path, wrong
            wrong[path] = reason
    return None, wrong


def damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint's file, or None: each of its records has a checksum (CRC-32), and its
    weights and buffers are finite."""
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
        if bad is not None:
            return f"{bad} in it is not what was written"
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        return " ".join(str(error).split()) or type(error).__name__
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        states = [content.get(key, {}) for key in STATES]
    except Exception:  # code, or no checkpoint at all: said where it is loaded
        return None
    names = [name for state in states for name in not_finite(state) if name not in content.get("infinite", ())]
    return f"tensors with NaN or infinity: {len(names)}, such as {names[0]}" if names else None


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of the tensors of a state dict that have NaN or infinity in them. Where there are none, it
    reads from the device once."""
    local = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in state.items()}
    floats = {name: value.detach() for name, value in local.items() if value.is_floating_point()}
    if bool(get_total_norm(list(floats.values())).isfinite()):
        return []
    return [name for name, value in floats.items() if not bool(value.isfinite().all())]  # the norm may overflow
