"""Networks of a backbone's config: built, filled with weights of a file, tried on the shape of the data."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from imgcls.backbones.layers import head_names, last_layer, on_meta, reset_head
from imgcls.backbones.lora import add_adapters
from imgcls.backbones.weights import load_weights
from imgcls.config import check as configs
from imgcls.config.allowed import allowed
from imgcls.config.build import build
from imgcls.config.training import FIRST_WEIGHTS, FirstWeights, LoRA, network_call
from imgcls.errors import UserError
from imgcls.spec import ImageSize, as_word, sides

log = logging.getLogger(__name__)
Shape = Mapping[str, ImageSize]  # num_classes, in_channels, image_size


def build_network(
    config: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    class_names: Sequence[str] | None = None,
    *,
    whole: bool = False,
) -> nn.Module:
    """Builds a backbone from the user's config, loads its first weights (with `class_names` without a head
    for others; `whole`: all of them), tries the shape of the data, and adds adapters if it has `lora`. Raises
    UserError: keys, weights or images that do not fit."""
    shape: Shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    options, first = network_call(dict(config)), FirstWeights.read(dict(config))
    target = configs.locate(options["_target_"], "backbone._target_")
    network = build(options, "backbone", **taken(target, shape))
    if not isinstance(network, nn.Module):
        returned = f"backbone._target_={options['_target_']} returns {type(network).__name__}"
        raise UserError(f"{returned}; expected a torch.nn.Module")
    name_head(network, num_classes)
    if configs.has_nodes(list(options.values())):
        log.warning("backbone has a call within it: its checkpoints can be resumed, but not evaluated alone")
    if first.weights is not None:
        reset_head(network)
        load_weights(network, Path(first.weights), class_names, first.rename, whole)
    rgb_alone = in_channels != 3 and "in_channels" not in taken(target, shape)
    advice = f"{options['_target_']} takes no in_channels: set data.channels=3" if rgb_alone else None
    try_shapes(network, num_classes, in_channels, image_size, advice)
    if lora := LoRA.read(dict(config)):
        add_adapters(network, lora, (in_channels, *sides(image_size)))
    return network


def taken(target: Callable[..., Any], shape: Shape) -> dict[str, Any]:
    """Returns those facts of the data that a backbone's function has a parameter for; a function that passes
    keywords on, as torchvision's do, gets the number of classes. Raises UserError: it takes squares alone."""
    named, passes_on = configs.hints_of(target)
    if named.get("image_size") is int and not isinstance(size := shape["image_size"], int):
        fault = f"data.image_size={as_word(size)}: this backbone takes squares (image_size: int)"
        raise UserError(f"{fault}; give one number, or choose another backbone")
    return {k: v for k, v in shape.items() if k in named or (passes_on and k == "num_classes")}


def rebuild_network(
    config: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
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
    options = {key: value for key, value in config.items() if key not in {*FIRST_WEIGHTS, "lora"}}
    shape: Shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    network = build({**options, **taken(target, shape)}, "the checkpoint's backbone", target=target)
    if not isinstance(network, nn.Module):
        raise UserError(f"the checkpoint's backbone._target_={config['_target_']} returns no torch.nn.Module")
    name_head(network, num_classes)
    if lora := LoRA.read(dict(config)):
        add_adapters(network, lora, (in_channels, *sides(image_size)))
    return network


def name_head(network: nn.Module, num_classes: int) -> None:
    """Names the head of a network that says none, as those of other libraries."""
    if not head_names(network):
        network.head_names = last_layer(network, num_classes)  # type: ignore[assignment]


def set_input_size(network: nn.Module, num_classes: int, in_channels: int, image_size: ImageSize) -> None:
    """Makes a network that was built for images of one size take those of another. The networks of timm whose
    parameters depend on the size interpolate them. Raises UserError: it takes no other size."""
    advice = "leave data.image_size out, or take a size that this network can be given"
    if callable(resize := getattr(network, "set_input_size", None)):
        try:
            resize(img_size=sides(image_size))
        except (RuntimeError, AssertionError, ValueError, TypeError, ArithmeticError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"data.image_size={as_word(image_size)}: {reason}; {advice}") from error
    try_shapes(network, num_classes, in_channels, image_size, advice)


def check_patches(network: nn.Module, height: int, width: int) -> None:
    """Raises ValueError where timm would see less of an image: the right and lower edge are in no patch."""
    for embed in network.modules():
        if type(embed).__module__ == "timm.layers.patch_embed" and not getattr(
            embed, "dynamic_img_pad", True
        ):
            tall, wide = embed.patch_size  # type: ignore[misc]
            if height % tall or width % wide:
                raise ValueError(f"its patches of {tall}×{wide} would leave an edge out: take multiples")


def try_shapes(
    network: nn.Module, num_classes: int, in_channels: int, image_size: ImageSize, advice: str | None = None
) -> None:
    """Raises UserError where the network in training does not return logits for such images."""
    training, shape = network.training, (in_channels, *sides(image_size))
    try:
        check_patches(network, *shape[1:])
        outputs = on_meta(network.train(), 2, *shape)
    except NotImplementedError:
        return  # an operator without a meta kernel: training itself will tell
    except (RuntimeError, AssertionError, ValueError, ArithmeticError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = advice or "take a larger data.image_size or another backbone"
        given = "×".join(map(str, shape))
        raise UserError(f"images of {given} do not fit this network ({reason}); {advice}") from error
    finally:
        network.train(training)
    found = tuple((outputs if isinstance(outputs, Tensor) else outputs[0]).shape)
    if found != (2, num_classes):
        raise UserError(f"the backbone returns {found} for 2 images; expected logits (2, {num_classes})")
