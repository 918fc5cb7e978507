"""Networks of a backbone's config: built, filled with weights of a file, tried on the shape of the data."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from imgcls.backbones.layers import head_names, last_layer, reset_head
from imgcls.config import check as configs
from imgcls.config.allowed import allowed
from imgcls.config.build import build
from imgcls.config.training import FIRST_WEIGHTS, network_call
from imgcls.errors import UserError
from imgcls.runs.checkpoints import load_tensors, unloadable

log = logging.getLogger(__name__)
# Of a state in a file.
KEYS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net")
WRAPPERS = ("module.", "network.", "_orig_mod.")  # prefixes of names in a state


def build_network(
    config: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    image_size: int,
    class_names: Sequence[str] | None = None,
) -> nn.Module:
    """Builds a backbone from the user's config, loads its first weights (with `class_names` without a head
    for others), and tries the shape of the data. UserError: keys, weights or images that do not fit."""
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    options, weights = network_call(dict(config)), config.get("weights")
    target = configs.locate(options["_target_"], "backbone._target_")
    network = build({**options, **taken(target, shape)}, "backbone")
    if not isinstance(network, nn.Module):
        returned = f"backbone._target_={options['_target_']} returns {type(network).__name__}"
        raise UserError(f"{returned}; expected a torch.nn.Module")
    name_head(network, num_classes)
    if configs.has_nodes(list(options.values())):
        log.warning("backbone has a call within it: its checkpoints can be resumed, but not evaluated alone")
    if weights is not None:
        reset_head(network)
        load_weights(network, Path(weights), class_names)
    rgb_alone = in_channels != 3 and "in_channels" not in taken(target, shape)
    advice = f"{options['_target_']} takes no in_channels: set data.channels=3" if rgb_alone else None
    try_shapes(network, **shape, advice=advice)
    return network


def taken(target: Callable[..., Any], shape: Mapping[str, int]) -> dict[str, int]:
    """Returns those facts of the data that a backbone's function has a parameter for; a function that passes
    keywords on, as torchvision's do, gets the number of classes."""
    named, passes_on = configs.hints_of(target)
    return {k: v for k, v in shape.items() if k in named or (passes_on and k == "num_classes")}


def rebuild_network(
    config: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    image_size: int,
    class_names: Sequence[str] | None = None,
    *,
    trust: Iterable[str] = (),
) -> nn.Module:
    """Builds the backbone that a checkpoint names, without first weights, if its allow-list has it. Raises
    UserError: it is not allowed, and nothing of it was imported or called; or its settings do not fit."""
    target = allowed(config.get("_target_"), "backbone", trust)
    if "_args_" in config and target.__module__.startswith("torchvision."):  # the first is `weights`
        fault = "expected all arguments by name; it was not called"
        raise UserError(f"the checkpoint's backbone._args_={config['_args_']}: {fault}")
    options = {key: value for key, value in config.items() if key not in FIRST_WEIGHTS}
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    network = build({**options, **taken(target, shape)}, "the checkpoint's backbone", target=target)
    if not isinstance(network, nn.Module):
        raise UserError(f"the checkpoint's backbone._target_={config['_target_']} returns no torch.nn.Module")
    name_head(network, num_classes)
    return network


def name_head(network: nn.Module, num_classes: int) -> None:
    """Names the head of a network that says none, as those of other libraries."""
    if not head_names(network):
        network.head_names = last_layer(network, num_classes)  # type: ignore[assignment]


def on_meta(network: nn.Module, *shape: int) -> Any:
    """Returns a network's output for images of a shape, computed on shapes alone: milliseconds, no memory."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    return torch.func.functional_call(network, state, torch.empty(shape, device="meta"))


def try_shapes(
    network: nn.Module, num_classes: int, in_channels: int, image_size: int, advice: str | None = None
) -> None:
    """Raises UserError where the network in training does not return logits for such images."""
    training, side = network.training, f"{in_channels}×{image_size}×{image_size}"
    try:
        outputs = on_meta(network.train(), 2, in_channels, image_size, image_size)
    except NotImplementedError:
        return  # an operator without a meta kernel: training itself will tell
    except (RuntimeError, AssertionError, ValueError, ArithmeticError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = advice or "take a larger data.image_size or another backbone"
        raise UserError(f"images of {side} do not fit this network ({reason}); {advice}") from error
    finally:
        network.train(training)
    found = tuple((outputs if isinstance(outputs, Tensor) else outputs[0]).shape)
    if found != (2, num_classes):
        raise UserError(f"the backbone returns {found} for 2 images; expected logits (2, {num_classes})")


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """Returns the tensors of a .safetensors file, or of a pickle that carries nothing but data (code is not
    run), and the names of the classes, where the file has them, as one of train or export has."""
    if not path.is_file():
        raise UserError(f"weights={path}: there is no such file")
    names: list[str] | None = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                with suppress(KeyError, TypeError, ValueError):  # not a file of ours
                    names = list(json.loads(file.metadata()["class_names"]))
                state: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no iterator
        else:
            state = load_tensors(path)
    except Exception as error:  # many types, one for each way of being damaged
        raise UserError(f"weights={path}: {unloadable(path, error)}") from error
    match state:
        case {"hyper_parameters": {"spec": {"class_names": [*names]}}}:  # a checkpoint of train
            pass
    if isinstance(state, Mapping):
        state = next((state[key] for key in KEYS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise UserError(f"weights={path}: expected a state dict, names to tensors, but found {kind}")
    for key, value in state.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not (isinstance(key, str) and plain) or value.is_meta or value.is_quantized or value.is_complex():
            expected = "expected a state dict, names to dense tensors of real numbers"
            found = f"{key!r:.60} is no such name, or has no such tensor"
            raise UserError(f"weights={path}: {expected}, but {found}")
    for prefix in WRAPPERS:
        if sum(key.startswith(prefix) for key in state) > len(state) / 2:
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state), names


def load_weights(network: nn.Module, path: Path, class_names: Sequence[str] | None = None) -> None:
    """Loads a local state dict, without a head that learnt other classes; says which keys did not fit. Raises
    UserError: fewer than half of the network's tensors found theirs in the file."""
    own, (state, learnt) = network.state_dict(), read_state(path)
    fit, other = fitting(network, state), list[str]()
    if class_names is not None and learnt is not None and learnt != list(class_names):
        heads = tuple(f"{name}." for name in head_names(network))
        other = [key for key in fit if key.startswith(heads)]
    unfit = {
        "of other classes": other,
        "other shape": [key for key in state if key in own and key not in fit],
        "not in the file": [k for k in own if k not in state and not k.endswith("num_batches_tracked")],
        "not in the network": [key for key in state if key not in own],
    }
    problems = []
    for what, keys in unfit.items():
        more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
        problems += [f"{what}: {', '.join(keys[:6])}{more}"] if keys else []
    matching = {key: value for key, value in fit.items() if key not in other}
    count = f"{len(matching)} of {len(own)} tensors"
    if 2 * len(matching) < len(own):
        raise UserError(f"weights={path}: only {count} fit this network ({'; '.join(problems)})")
    network.load_state_dict(matching, strict=False)
    log.info("%s", "\n  ".join([f"weights: {count} from {path}", *problems]))


def fitting(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns those tensors that the network has, in the same shape."""
    own = network.state_dict()
    return {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
