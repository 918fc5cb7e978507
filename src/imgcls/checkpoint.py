"""Checkpoints: enough by themselves, and never trusted with code."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from imgcls.backbones.build import load_tensors, unloadable
from imgcls.errors import UserError


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


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints so that a file of that name is always whole. What replaces `last.ckpt` keeps it as
    `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_whole(checkpoint, Path(path))


def write_whole(content: dict[str, Any], path: Path) -> None:
    """Writes to another name, waits until the disk has it, and renames. Raises UserError where the disk is full."""
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == "last.ckpt" and path.exists():
            path.replace(path.with_name("previous.ckpt"))
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path} could not be written ({' '.join(str(error).split())[:200]}); what was saved before is whole: make "
            "room, and go on with resume=RUN_DIR"
        ) from error


def damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint's file, or None: each of its records has a checksum (CRC-32)."""
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
        return None if bad is None else f"{bad} in it is not what was written"
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        return " ".join(str(error).split()) or type(error).__name__
