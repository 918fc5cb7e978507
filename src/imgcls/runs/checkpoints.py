"""Checkpoint files: finds them, reads them without running code in them, and checks them for damage."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from imgcls.errors import UserError

STATES = ("state_dict", "current_model_state")  # with EMA, the first has the means


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
    """Returns the best of several kept checkpoints (`save_top_k`), as the last one names it, or the last."""
    if all(path.name in ("last.ckpt", "previous.ckpt") for path in last.parent.glob("*.ckpt")):
        return last
    for key, state in load_content(last).get("callbacks", {}).items():
        if key.startswith("ModelCheckpoint") and state["best_model_path"]:
            best = last.with_name(Path(state["best_model_path"]).name)  # where the run lies now
            if best.is_file():
                return best
    return last


def epoch_of(path: Path) -> int | None:
    """Returns the epoch, counted from 0, after which a checkpoint was written; None where it does not say."""
    try:
        content = load_tensors(path, mapped=True)
    except Exception:  # many types; who uses the checkpoint says what is wrong with it
        return None
    epoch = content.get("epoch") if isinstance(content, dict) else None
    return epoch if isinstance(epoch, int) else None


def load_content(path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint, without running code that it may carry. Raises UserError where the
    file is damaged, carries code, or was not written by a training of ours."""
    try:
        content = load_tensors(path)
    except Exception as error:  # many types, one for each way of being damaged
        raise UserError(f"checkpoint={path}: {unloadable(path, error)}") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        advice = f"for a state dict use backbone.weights={path}"
        raise UserError(f"checkpoint={path}: it was not written by imgcls train; {advice}")
    return content


def newest(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """Returns the newest whole checkpoint to go on from, and what is wrong with those that are newer."""
    wrong = dict[Path, str]()
    # A `last.partial` that is whole is the newest: the process was killed before it could rename it.
    for path in (folder / name for name in ("last.partial", "last.ckpt", "previous.ckpt")):
        if path.exists():
            if (reason := damage(path)) is None:
                return path, wrong
            wrong[path] = reason
    return None, wrong


def damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint's file, by checksums and for weights that are not finite."""
    try:
        with zipfile.ZipFile(path) as file:
            if (bad := file.testzip()) is not None:
                return f"{bad} in it is not what was written"
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        return " ".join(str(error).split()) or type(error).__name__
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        states, known = [content.get(key, {}) for key in STATES], content.get("infinite", ())
    except Exception:  # it holds code, or is no checkpoint: whoever loads it says so
        return None
    names = [name for state in states for name in not_finite(state) if name not in known]
    return f"tensors with NaN or infinity: {len(names)}, such as {names[0]}" if names else None


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of the tensors with NaN or infinity; where there are none, reads the device once."""
    local = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in state.items()}
    floats = {name: value.detach() for name, value in local.items() if value.is_floating_point()}
    if bool(get_total_norm(list(floats.values())).isfinite()):
        return []
    # The norm may overflow though all values are finite.
    return [name for name, value in floats.items() if not bool(value.isfinite().all())]


def load_tensors(path: Path, mapped: bool = False) -> Any:
    """Loads a file of torch.save that holds nothing but tensors and plain Python; code in it is never run.
    `mapped`: the tensors stay in the file, where it is of a form that can be mapped into memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol|Validating sparse tensor")
        mapped = mapped and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def unloadable(path: Path, error: Exception) -> str:
    """Says in a few words why `load_tensors` or safetensors refused a file."""
    with path.open("rb") as file:
        bare_pickle = file.read(1) == b"\x80"
    refused = ("unsupported global", "unsupported class", "not an allowed global")
    if bare_pickle or any(word in str(error).lower() for word in refused):
        return "it carries code or objects beside tensors, so it was not loaded; save its state dict alone"
    return "it is damaged or no file of weights; fetch or copy it again"
