"""Networks of torchvision: every one that classifies, by name, for any number of classes and channels."""

import inspect
from typing import Any

import torchvision.models as models
from timm.models import adapt_input_conv
from torch import nn

from imgcls.backbones.layers import last_layer, reset_head
from imgcls.backbones.weights import fitting
from imgcls.errors import UserError, nearest
from imgcls.spec import ImageSize, as_word, sides

# Networks with auxiliary heads: weight of the losses (torchvision's; Szegedy et al. 2014), and names.
AUXILIARY_WEIGHT = {"inception_v3": 0.4, "googlenet": 0.3}
AUXILIARY_HEADS = {"inception_v3": ("fc", "AuxLogits.fc"), "googlenet": ("fc", "aux2.fc2", "aux1.fc2")}


def torchvision_network(
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    name: str,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Returns `torchvision.models.<name>`; `options` go to it (dropout, …).

    With `pretrained` it has the library's default weights; where classes or channels differ, heads are new
    and the first convolution's weights are summed or repeated over the channels. Raises UserError: an unknown
    name or option, or weights that could not be had.
    """
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"backbone.name={name}: torchvision has no such network; {nearest(name, known)}")
    module = models.get_model_builder(name).__module__
    if module.endswith("vision_transformer"):  # networks of one size
        options = {"image_size": square(image_size, name)} | options
    elif module.endswith("maxvit"):
        options = {"input_size": sides(image_size)} | options
    elif name in AUXILIARY_WEIGHT:  # inputs are scaled anew always, so that a checkpoint needs not say it
        auxiliary = {"aux_logits": True, "init_weights": not pretrained, "transform_input": in_channels == 3}
        options = auxiliary | options
    try:
        network: Any = models.get_model(name, num_classes=num_classes, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"backbone.name={name}: {' '.join(str(error).split())}") from error
    name_heads(network, name, num_classes)
    if pretrained:
        reset_head(network)
        load_published(network, name, options)
    if in_channels != 3:
        adapt_stem(network, in_channels)
    return network


def square(image_size: ImageSize, name: str) -> int:
    """Returns the side of a size. Raises UserError: it is no square."""
    if isinstance(image_size, int):
        return image_size
    fault = f"data.image_size={as_word(image_size)}: torchvision's {name} takes squares"
    raise UserError(f"{fault}; timm's vision transformers take any (backbone=timm)")


def name_heads(network: Any, name: str, num_classes: int) -> None:
    """Sets `head_names`, by default the last layer with an output for each class, and `auxiliary_weight`."""
    known = dict(network.named_modules())
    last = last_layer(network, num_classes)
    network.head_names = tuple(head for head in AUXILIARY_HEADS.get(name, last) if head in known)
    if name in AUXILIARY_WEIGHT:
        network.auxiliary_weight = AUXILIARY_WEIGHT[name]


def load_published(network: Any, name: str, options: dict[str, Any]) -> None:
    """Loads the library's default weights, but for heads of another number of classes."""
    if options.get("input_size", (224, 224)) != (224, 224):
        raise UserError(f"backbone.name={name}: its weights are for one image size; set data.image_size=224")
    try:
        weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        fault = f"backbone.pretrained=true: the weights of {name} could not be downloaded ({reason})"
        raise UserError(f"{fault}; fetch them elsewhere and give backbone.weights=FILE") from error
    if "image_size" in options:
        size, patch = options["image_size"], network.patch_size
        state = models.vision_transformer.interpolate_embeddings(size, patch, state)
    network.load_state_dict(fitting(network, state), strict=False)


def adapt_stem(network: nn.Module, in_channels: int) -> None:
    """Replaces the first convolution by one of `in_channels`: weights summed for grey, repeated for more."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    names = inspect.signature(nn.Conv2d).parameters.keys() - {"in_channels", "bias", "device", "dtype"}
    same = {key: getattr(old, key) for key in names}
    new = nn.Conv2d(in_channels, bias=False, device=old.weight.device, **same)
    new.weight, new.bias = nn.Parameter(adapt_input_conv(in_channels, old.weight.data)), old.bias
    network.set_submodule(name, new)
