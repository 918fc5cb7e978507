"""Weights of a file, loaded into a network."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from imgcls.errors import UserError
from imgcls.runs.checkpoints import load_tensors, unloadable

log = logging.getLogger(__name__)


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """Returns the tensors of a .safetensors file or of a pickle that carries nothing but data, and the names of the
    classes where it has them: a checkpoint of train or weights of export.

    A state dict may lie under `state_dict`, `model` or the like, and its keys may start with `module.`,
    `network.` or `_orig_mod.`, as wrappers leave them.

    Raises:
        UserError: no such file, not whole, or a pickle that carries code (which is not run).
    """
    if not path.is_file():
        raise UserError(f"weights={path}: there is no such file")
    try:
        state, names = load_safetensors(path) if path.suffix == ".safetensors" else (load_tensors(path), None)
    except Exception as error:  # many types, one for each way of being damaged
        raise UserError(f"weights={path}: {unloadable(path, error)}") from error
    match state:
        case {"hyper_parameters": {"spec": {"class_names": [*names]}}}:  # a checkpoint of train
            pass
    keys = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net")
    state = next(
        (state[k] for k in keys if isinstance(state, Mapping) and isinstance(state.get(k), Mapping)), state
    )
    if not isinstance(state, Mapping):
        raise UserError(
            f"weights={path}: expected a state dict, names to tensors, but found {type(state).__name__}"
        )
    if odd := [key for key, value in state.items() if not (isinstance(key, str) and is_plain(value))]:
        expected = "expected a state dict, names to dense tensors of real numbers"
        raise UserError(
            f"weights={path}: {expected}, but {odd[0]!r:.60} is no such name, or has no such tensor"
        )
    for prefix in ("module.", "network.", "_orig_mod."):
        if sum(key.startswith(prefix) for key in state) > len(state) / 2:
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state), names


def is_plain(value: object) -> bool:
    """Says whether it is a tensor that a network's own can be filled with."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    return not (value.is_meta or value.is_quantized or value.is_complex())


def load_safetensors(path: Path) -> tuple[Any, list[str] | None]:
    """Returns tensors by name, and the names of the classes where the file's metadata has them."""
    names = None
    with safe_open(path, framework="pt") as file:
        with suppress(KeyError, TypeError, ValueError):  # not a file of ours
            names = list(json.loads(file.metadata()["class_names"]))
        return {key: file.get_tensor(key) for key in file.keys()}, names  # noqa: SIM118  # it has no iterator


def load_weights(network: nn.Module, path: Path, class_names: Sequence[str] | None = None) -> None:
    """Loads a local state dict, without a head that learnt other classes; says which keys did not fit.

    Raises:
        UserError: fewer than half of the network's tensors found theirs in the file.
    """
    own, (state, learnt) = network.state_dict(), read_state(path)
    matching, other = fitting(network, state), list[str]()
    if class_names is not None and learnt is not None and learnt != list(class_names):
        heads = tuple(f"{name}." for name in getattr(network, "head_names", ()))
        other = [key for key in matching if key.startswith(heads)]
        matching = {key: value for key, value in matching.items() if key not in other}
    missing = [
        key for key in own if key not in state and not key.endswith("num_batches_tracked")
    ]  # files of old
    problems = [
        f"{what}: {', '.join(keys[:6])}{f' and {len(keys) - 6} more' if len(keys) > 6 else ''}"
        for what, keys in {
            "of other classes": other,
            "other shape": [key for key in state if key in own and key not in matching and key not in other],
            "not in the file": missing,
            "not in the network": [key for key in state if key not in own],
        }.items()
        if keys
    ]
    count = f"{len(matching)} of {len(own)} tensors"
    if 2 * len(matching) < len(own):
        raise UserError(f"weights={path}: only {count} fit this network ({'; '.join(problems)})")
    network.load_state_dict(matching, strict=False)
    log.info("weights: %s from %s%s", count, path, "".join(f"\n  {problem}" for problem in problems))


def fitting(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns those tensors that the network has, in the same shape."""
    own = network.state_dict()
    return {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
