"""From a backbone's config to a network that is known to fit its data."""

import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from imgcls.config import check as configs
from imgcls.config.allowed import allowed
from imgcls.errors import UserError
from imgcls.spec import DataSpec

log = logging.getLogger(__name__)
FIRST_WEIGHTS = ("pretrained", "weights")  # keys of a backbone that say where they come from


def build_network(
    config: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    image_size: int,
    class_names: Sequence[str] | None = None,
) -> nn.Module:
    """Builds a backbone from the user's config, gives it its first weights, and tries it on the shape of the data.

    With `class_names`, a head that the weights' file has for other classes is left out.

    Raises:
        UserError: a key does not fit, the weights do not, or the images are too small for the network.
    """
    options, shape = dict(config), {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    weights = options.pop("weights", None)
    network = configs.build({**options, **shape}, "backbone")
    if not isinstance(network, nn.Module):
        raise UserError(
            f"backbone._target_={options['_target_']} returns {type(network).__name__}; expected a torch.nn.Module"
        )
    if weights is not None:
        reset_head(network)
        load_weights(network, Path(weights), class_names)
    try_shapes(network, **shape)
    return network


def rebuild_network(config: Mapping[str, Any], spec: DataSpec, trust: Iterable[str] = ()) -> nn.Module:
    """Builds the backbone that a checkpoint names, without first weights, if its allow-list has it.

    Raises:
        UserError: it is not allowed, and nothing of it was imported or called; or its settings do not fit.
    """
    target = allowed(config.get("_target_"), "backbone", trust)
    options = {key: value for key, value in config.items() if key not in FIRST_WEIGHTS}
    shape = {"num_classes": spec.num_classes, "in_channels": spec.channels, "image_size": spec.image_size}
    network = configs.build({**options, **shape}, "the checkpoint's backbone", target=target)
    if not isinstance(network, nn.Module):
        raise UserError(f"the checkpoint's backbone._target_={config['_target_']} returns no torch.nn.Module")
    return network


def reset_head(network: nn.Module) -> None:
    """Starts the head at zero (Kolesnikov et al. 2019, BiT): the first loss is then the logarithm of the number of classes
    whatever the scale of the features is, and trained weights below it get no gradients of random logits.

    A head that is a convolution keeps its library's weights: SqueezeNet's goes into a ReLU, which has no gradient at 0."""
    for name in getattr(network, "head_names", ()):
        head = network.get_submodule(name)
        for parameter in head.parameters() if isinstance(head, nn.Linear) else ():
            nn.init.zeros_(parameter)


def on_meta(network: nn.Module, *shape: int) -> Any:
    """Returns what the network gives for images of a shape, computed on shapes alone: milliseconds, no memory."""
    state = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    return torch.func.functional_call(network, state, torch.empty(shape, device="meta"))


def try_shapes(network: nn.Module, num_classes: int, in_channels: int, image_size: int) -> None:
    """Raises UserError where the network in training does not return logits for such images."""
    training, side = network.training, f"{in_channels}×{image_size}×{image_size}"
    try:
        outputs = on_meta(network.train(), 2, in_channels, image_size, image_size)
    except NotImplementedError:
        return  # an operator without a meta kernel: training itself will tell
    except (RuntimeError, AssertionError, ValueError, ArithmeticError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = "take a larger data.image_size or another backbone"
        raise UserError(f"images of {side} do not fit this network ({reason}); {advice}") from error
    finally:
        network.train(training)
    found = tuple((outputs if isinstance(outputs, Tensor) else outputs[0]).shape)
    if found != (2, num_classes):
        raise UserError(f"the backbone returns {found} for 2 images; expected logits (2, {num_classes})")


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
    state = next((state[k] for k in keys if isinstance(state, Mapping) and isinstance(state.get(k), Mapping)), state)
    if not isinstance(state, Mapping):
        raise UserError(f"weights={path}: expected a state dict, names to tensors, but found {type(state).__name__}")
    if odd := [key for key, value in state.items() if not (isinstance(key, str) and is_plain(value))]:
        expected = "expected a state dict, names to dense tensors of real numbers"
        raise UserError(f"weights={path}: {expected}, but {odd[0]!r:.60} is no such name, or has no such tensor")
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


def load_tensors(path: Path) -> Any:
    """Loads a file of torch.save that holds nothing but tensors and plain Python; code in it is never run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol|Validating sparse tensor")
        return torch.load(path, map_location="cpu", weights_only=True)


def unloadable(path: Path, error: Exception) -> str:
    """Says in a few words why `load_tensors` or safetensors refused a file."""
    with path.open("rb") as file:
        bare_pickle = file.read(1) == b"\x80"
    refused = ("unsupported global", "unsupported class", "not an allowed global")
    if bare_pickle or any(word in str(error).lower() for word in refused):
        return "it carries code or objects beside tensors, so it was not loaded; save its state dict alone"
    return "it is damaged or no file of weights; fetch or copy it again"


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
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]  # files of old
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
