"""Checkpoint files: whole, also where the process is killed or the disk is full, with the run's config."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from imgcls.config.paths import shown
from imgcls.engine.run_directory import note_change, put_in_place
from imgcls.errors import UserError
from imgcls.runs.checkpoints import load_tensors, newest
from imgcls.runs.record import rerooted, write_config

State = dict[str, Any]  # the content of a checkpoint


def add_to_checkpoint(path: Path, **entries: Any) -> None:
    """Adds plain entries to a checkpoint's file."""
    write_whole(load_tensors(path) | entries, path)


class WholeFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints by `write_whole`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_whole(checkpoint, Path(path))


def write_whole(content: dict[str, Any], path: Path) -> None:
    """Writes to another name, waits until the disk has the file, and renames it. Raises UserError where the
    disk takes no more; it says how much is free, and from what the run can go on."""
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


def no_room(checkpoints: Path, error: Exception) -> str:
    """Says how full the disk of a run's checkpoints is, and from which of them the run can go on."""
    folder = next(place for place in (checkpoints, *checkpoints.absolute().parents) if place.is_dir())
    disk = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_mount())
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write came short"
    said = f"the disk at {disk} has {shutil.disk_usage(folder).free:,} bytes free ({reason}); make room: "
    kept, resume = newest(checkpoints)[0], shlex.quote(f"resume={shown(checkpoints.parent)}")
    anew = "no checkpoint to go on from is left, the run begins anew"
    left = f"the run goes on from {shown(kept)}" if kept else anew
    return f"{said}{left} with imgcls train {resume}"


class SaveConfig(Callback):
    """Callback that puts the run's whole config, plain and resolved, into each checkpoint."""

    def __init__(self, config: dict[str, Any], resumed_from: Path | None = None) -> None:
        self.config, self.resumed_from = config, resumed_from
        self.kept = self.trained = False

    def on_train_batch_end(self, *_: Any) -> None:
        self.trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep(trainer)

    def keep(self, trainer: Trainer) -> None:
        """Writes the config into the run directory, once: a change at a resume that has worked is kept."""
        if trainer.is_global_zero and not self.kept:
            config = {k: v for k, v in self.config.items() if k != "git"}
            note_change(Path(self.config["run_dir"]), config, self.resumed_from)
            write_config(Path(self.config["run_dir"]), config)
        self.kept = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        checkpoint["config"] = self.config

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        before = checkpoint["config"]["run_dir"]  # where the best one was, if the run has been moved since
        checkpoint["callbacks"] = rerooted(checkpoint["callbacks"], before, self.config["run_dir"])
