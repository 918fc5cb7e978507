"""Checkpoints: enough by themselves, and never trusted with code."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from imgcls.backbones.build import load_tensors, unloadable
from imgcls.classifier import ImageClassifier
from imgcls.errors import UserError


def find_checkpoint(given: str) -> Path:
    """Returns the checkpoint that a path means: the file itself, or the best one of a run directory."""
    path = Path(given).expanduser()
    if path.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            for folder in (path / "checkpoints", path):
                if (folder / name).is_file():
                    return folder / name
        raise UserError(f"checkpoint={given}: the folder has no checkpoints/best.ckpt or last.ckpt")
    if not path.is_file():
        raise UserError(f"checkpoint={given}: there is no such file")
    return path


def load_checkpoint(path: Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """Returns the classifier of a checkpoint, in evaluation mode on the CPU, and the config of its run.

    Raises:
        UserError: the file is damaged, carries code (which is not run), or is no checkpoint of an ImageClassifier.
    """
    try:
        content = load_tensors(path)
    except Exception as error:  # many types, one for each way of being damaged
        raise UserError(f"checkpoint={path}: {unloadable(path, error)}") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters", "config"} <= content.keys():
        raise UserError(
            f"checkpoint={path}: it was not written by imgcls train; for a state dict use backbone.weights={path}"
        )
    try:
        classifier = ImageClassifier(**content["hyper_parameters"])
        classifier.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"checkpoint={path}: its weights are of another network than its settings say ({reason})"
        ) from error
    classifier.on_load_checkpoint(content)
    nn.Module.eval(classifier)
    return classifier, content["config"]


def add_to_checkpoint(path: Path, **entries: Any) -> None:
    """Adds plain entries to a checkpoint's file, which is whole at any time."""
    partial = path.with_suffix(".partial")
    torch.save(load_tensors(path) | entries, partial)
    partial.replace(path)
