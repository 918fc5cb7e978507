"""Networks of timm: every one, by name, for any number of classes and channels."""

from typing import Any

import timm
from torch import nn

from imgcls.backbones.layers import reset_head
from imgcls.errors import UserError, nearest
from imgcls.spec import ImageSize

# Options of timm.create_model that name files and addresses: timm would read them by rules of its own.
REFUSED = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def timm_network(
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    name: str,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Returns `timm.create_model(name)`; `options` go to it (drop_rate, drop_path_rate, …). Raises UserError:
    an unknown name or option, or weights that could not be had."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        advice = nearest(name, timm.list_models())
        raise UserError(f"backbone.name={name}: timm has no such network; {advice}")
    if taken := REFUSED & set(options):
        raise UserError(f"backbone.{taken.pop()}: files of weights are read by backbone.weights=FILE alone")
    known = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    if known is not None and known.fixed_input_size:  # transformers: positions depend on the size
        options = {"img_size": image_size} | options
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **options
        )
    except (TypeError, AssertionError, ValueError, RuntimeError, OSError, ArithmeticError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        advice = "; fetch the weights elsewhere and give backbone.weights=FILE" if pretrained else ""
        raise UserError(f"backbone.name={name}: timm could not make it ({reason}){advice}") from error
    heads = network.pretrained_cfg["classifier"]  # type: ignore[index]
    network.head_names = (heads,) if isinstance(heads, str) else tuple(heads)  # type: ignore[assignment]
    if pretrained and network.pretrained_cfg["num_classes"] != num_classes:  # type: ignore[index]
        reset_head(network)
    return network
