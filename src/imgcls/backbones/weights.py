"""Weights of a file: read without running code in them, matched with a network's tensors, and loaded."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn, strided

from imgcls.backbones.layers import head_names
from imgcls.errors import UserError
from imgcls.runs.checkpoints import find_checkpoint, load_tensors, not_finite, unloadable
from imgcls.spec import checked_size, sides

log = logging.getLogger(__name__)
# Of a state in a file; of several the first, as timm takes it: the mean over the steps is what was tested.
KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
WRAPPERS = ("module.", "network.", "_orig_mod.")  # prefixes of names in a state
COUNTERS = (
    "num_batches_tracked",
    "n_averaged",
)  # of batch norms and means: without effect, not in every file


def described(path: Path) -> dict[str, Any]:
    """Returns the fields of the `DataSpec` that a file of ours says, a checkpoint of train or the weights of
    export, and how its logits become probabilities: `activation` and `temperature`, where it says so; of
    another file none. Raises UserError as `read_state`."""
    found: Any = None
    path = file_of(path)
    if path.suffix.lower() == ".safetensors" and path.is_file():
        with suppress(Exception), safe_open(path, framework="pt") as file:  # `read_state` says what is wrong
            found = {name: json.loads(text) for name, text in file.metadata().items()}
    else:
        match load_file(path, mapped=True):
            case {"hyper_parameters": {"spec": {**spec}}, **others}:
                several = str(others.get("task")).endswith(".MultiLabelClassifier")
                found = spec | {"activation": "sigmoid" if several else "softmax"}
                found["temperature"] = others.get("temperature", 1.0)
    names = found.get("class_names") if isinstance(found, Mapping) else None
    ours = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return dict(found) if ours else {}


def file_of(path: Path) -> Path:
    """Returns the file of weights: itself, or the best checkpoint of a run directory."""
    return find_checkpoint(str(path)) if path.is_dir() else path


def load_file(path: Path, mapped: bool = False) -> Any:
    """Returns the content of a .safetensors file, of a pickle that carries nothing but data (code is not
    run), or of a run directory's best checkpoint; `mapped` as in `load_tensors`. Raises UserError: it
    is missing, damaged, or carries code."""
    path = file_of(path)
    if not path.is_file():
        raise UserError(f"weights={path}: there is no such file")
    try:
        if path.suffix.lower() != ".safetensors":
            return load_tensors(path, mapped)
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no iterator
    except Exception as error:  # many types, one for each way of being damaged
        raise UserError(f"weights={path}: {unloadable(path, error)}") from error


def read_state(path: Path, rename: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a file by name; parts of the names are replaced as `rename` says. Raises
    UserError: as `load_file`, it holds something else or adapters, or `rename` does not fit its names."""
    state = load_file(path)
    if isinstance(state, Mapping):
        keys = [key for key in KEYS if isinstance(state.get(key), Mapping)]
        if len(keys) > 1:
            log.info("weights: %s has %s; %s is taken", path, " and ".join(keys), keys[0])
        state = state[keys[0]] if keys else state
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise UserError(f"weights={path}: expected a state dict, names to tensors, but found {kind}")
    for key, value in state.items():
        plain = isinstance(value, Tensor) and value.layout is strided
        if not (isinstance(key, str) and plain) or value.is_meta or value.is_quantized or value.is_complex():
            expected = "expected a state dict, names to dense tensors of real numbers"
            found = f"{key!r:.60} is no such name, or has no such tensor"
            raise UserError(f"weights={path}: {expected}, but {found}")
    if any(".lora_" in key for key in state):
        advice = "imgcls export merges them: give the .safetensors that it writes"
        raise UserError(f"weights={path}: it has the adapters of finetune=lora beside its weights; {advice}")
    for prefix in WRAPPERS:
        if sum(key.startswith(prefix) for key in state) > len(state) / 2:
            bare = {key.removeprefix(prefix): value for key, value in state.items()}
            if len(bare) < len(state):
                twice = next(key for key in state if prefix + key in state)
                raise UserError(f"weights={path}: it has {twice} and {prefix}{twice}; leave one of them out")
            state = bare
    return renamed(dict(state), rename or {}, path)


def renamed(state: dict[str, Tensor], rename: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Replaces parts of the names, in the order of `rename`."""
    for old, new in rename.items():
        if not any(old in key for key in state):
            example = next(iter(state), "none")
            raise UserError(f"backbone.rename: no name in {path} has {old!r} in it; its first is {example}")
        changed = {key.replace(old, new): value for key, value in state.items()}
        if len(changed) < len(state):
            raise UserError(f"backbone.rename: with {old!r} as {new!r}, two names in {path} become the same")
        state = changed
    return state


def load_weights(
    network: nn.Module,
    path: Path,
    class_names: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    whole: bool = False,
) -> None:
    """Loads the state dict of a file.

    Args:
        class_names: of the data; a head that learnt others is left out.
        rename: parts of names in the file, and what they are in the network.
        whole: each tensor must find its own.

    Raises:
        UserError: fewer than half of the network's tensors found theirs in the file; or, for `whole`, one of
            them did not, or the file has others.
    """
    own, learnt = counted(network.state_dict()), described(path).get("class_names")
    found = by_order(network, read_state(path, rename))
    found = positioned(network, found, described(path).get("image_size"))
    state = counted(found)
    fit, other = fitting(network, state), list[str]()
    if class_names is not None and learnt is not None and list(learnt) != list(class_names):
        heads = tuple(f"{name}." for name in head_names(network))
        other = [key for key in fit if key.startswith(heads)]
    shapes = {k: f"{k} {size(state[k])} for {size(own[k])}" for k in state if k in own and k not in fit}
    unfit = {
        "of other classes": other,
        "other shape": list(shapes.values()),
        "not in the file": [key for key in own if key not in state],
        "not in the network": [key for key in state if key not in own],
    }
    problems = []
    for what, keys in unfit.items():
        more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
        problems += [f"{what}: {', '.join(keys[:6])}{more}"] if keys else []
    matching = {key: value for key, value in fit.items() if key not in other}
    count = f"{len(matching)} of {len(own)} tensors" if problems else f"all {len(own)} tensors"
    if 2 * len(matching) < len(own) or (whole and problems):
        advice = prefix_advice(own, state) or "expected the weights of this network"
        only = "only " if len(matching) < len(own) else ""
        raise UserError(f"weights={path}: {only}{count} fit this network ({'; '.join(problems)}); {advice}")
    check_numbers(path, own, matching)
    counters = {key: found[key] for key in fitting(network, found).keys() - state.keys()}
    network.load_state_dict(matching | counters, strict=False)
    log.info("%s", "\n  ".join([f"weights: {count} from {path}", *problems]))


def counted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that weights are counted by."""
    return {key: value for key, value in state.items() if not key.endswith(COUNTERS)}


def check_numbers(path: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises UserError for tensors of which the network would make other numbers, or NaN, without a word."""
    quantized = [k for k in found if own[k].is_floating_point() and not is_float(found[k])]
    if quantized:
        fault = f"{quantized[0]} is of {found[quantized[0]].dtype}"
        raise UserError(f"weights={path}: {fault}; expected floats of 16 bits or more: save them unquantized")
    if bad := [key for key in not_finite(found) if bool(own[key].isfinite().all())]:
        fault = f"tensors with NaN or infinity: {len(bad)}, such as {bad[0]}"
        raise UserError(f"weights={path}: {fault}; its training went wrong: take an earlier checkpoint")


def is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.itemsize > 1


def size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def fitting(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns those tensors that the network has, in the same shape."""
    own = network.state_dict()
    return {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}


def by_order(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state under the network's names, where they are others: if both have as many tensors, and one
    after the other, but for the heads, has the same shape and the same last part of its name."""
    own, given, heads = counted(network.state_dict()), counted(state), head_names(network)
    if len(fitting(network, given)) > len(own) / 2 or len(own) != len(given):
        return state
    for (name, mine), (key, theirs) in zip(own.items(), given.items(), strict=True):
        head = name.rpartition(".")[0] in heads
        if name.rpartition(".")[2] != key.rpartition(".")[2] or (mine.shape != theirs.shape and not head):
            return state
    first = next(((key, name) for key, name in zip(given, own, strict=True) if key != name), ("", ""))
    log.info("weights: taken by their order, because the names are others (%s for %s); shapes agree", *first)
    return dict(zip(own, given.values(), strict=True))


def positioned(network: Any, state: dict[str, Tensor], image_size: object) -> dict[str, Tensor]:
    """Returns a state in which the position embedding of one of timm's transformers is interpolated to the
    network's grid of patches. `image_size`: of the file's network; unknown, its grid is a square."""
    given, grid = state.get("pos_embed"), getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if given is None or not grid or given.ndim != 3 or not hasattr(network, "num_prefix_tokens"):
        return state
    others = 0 if getattr(network, "no_embed_class", False) else network.num_prefix_tokens
    old = (math.isqrt(max(given.shape[1] - others, 0)),) * 2
    with suppress(ValueError):
        size = sides(checked_size(image_size))
        old = tuple(side // patch for side, patch in zip(size, network.patch_embed.patch_size, strict=True))
    if old == tuple(grid) or math.prod(old) != given.shape[1] - others:
        return state
    log.info("weights: positions of %d×%d patches interpolated to %d×%d", *old, *grid)
    from timm.layers import resample_abs_pos_embed  # timm takes a second to import

    resampled = resample_abs_pos_embed(given, list(grid), list(old), num_prefix_tokens=others)
    return {**state, "pos_embed": resampled}


def prefix_advice(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Returns how to rename, where most names in the file are the network's after a prefix; else ""."""
    for prefix in {f"{key.partition('.')[0]}." for key in state}:
        if 2 * sum(key.removeprefix(prefix) in own for key in state if key.startswith(prefix)) > len(own):
            return f"write backbone.rename={{{prefix}:''}}"
    return ""
