"""Networks of a backbone's config, built and tried on the shape of the data."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.backbones.layers import reset_head
from imgcls.backbones.weights import load_weights
from imgcls.config import check as configs
from imgcls.config.allowed import allowed
from imgcls.errors import UserError
from imgcls.spec import DataSpec

FIRST_WEIGHTS = ("pretrained", "weights")  # keys of a backbone that say where they come from


def build_network(
    config: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    image_size: int,
    class_names: Sequence[str] | None = None,
) -> nn.Module:
    """Builds a backbone from the user's config, loads its first weights, and tries the shape of the data.

    With `class_names`, a head that the weights' file has for other classes is left out.

    Raises:
        UserError: a key does not fit, the weights do not, or the images are too small for the network.
    """
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    options = dict(config)
    weights = options.pop("weights", None)
    network = configs.build({**options, **shape}, "backbone")
    if not isinstance(network, nn.Module):
        returned = f"backbone._target_={options['_target_']} returns {type(network).__name__}"
        raise UserError(f"{returned}; expected a torch.nn.Module")
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


def on_meta(network: nn.Module, *shape: int) -> Any:
    """Returns a network's output for images of a shape, computed on shapes alone: milliseconds, no memory."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
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
