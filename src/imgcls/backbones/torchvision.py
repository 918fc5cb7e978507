"""Every classification network of torchvision.models, by name, for any number of classes and channels."""

import inspect
from typing import Any

import torchvision.models as models
from timm.models import adapt_input_conv
from torch import nn

from imgcls.errors import UserError, nearest

# Networks with auxiliary heads: the weight of their losses (torchvision's; Szegedy et al. 2014) and their heads.
AUXILIARY_WEIGHT = {"inception_v3": 0.4, "googlenet": 0.3}
AUXILIARY_HEADS = {"inception_v3": ("fc", "AuxLogits.fc"), "googlenet": ("fc", "aux2.fc2", "aux1.fc2")}


def torchvision_network(
    num_classes: int, in_channels: int, image_size: int, name: str, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Returns `torchvision.models.<name>`; `options` go to it (dropout, …).

    With `pretrained` it has the library's default weights; where classes or channels differ, heads are new
    and the first convolution's weights are summed or repeated over the channels.

    Raises:
        UserError: an unknown name or option, or weights that could not be had.
    """
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"backbone.name={name}: torchvision has no such network; {nearest(name, known)}")
    builder = models.get_model_builder(name)
    if name in AUXILIARY_WEIGHT:  # inputs re-scaled always, so that a checkpoint needs no word of it
        options = {"aux_logits": True, "init_weights": not pretrained, "transform_input": in_channels == 3} | options
    if pretrained:
        network = _download(builder, name, image_size, options)
    else:
        network = _call(builder, name, {**_size(builder, image_size), "num_classes": num_classes, **options})
    old = num_classes if not pretrained else 1000
    there = dict(network.named_modules())
    last = [key for key, module in there.items() if _outputs(module) == old][-1:]
    heads = [key for key in AUXILIARY_HEADS.get(name, last) if key in there]
    if old != num_classes:
        for head in heads:
            network.set_submodule(head, _resized(network.get_submodule(head), num_classes))
        if hasattr(network, "num_classes"):  # SqueezeNet
            network.num_classes = num_classes  # type: ignore[assignment]
    if in_channels != 3:
        adapt_stem(network, in_channels)
    network.head_names = tuple(heads)  # type: ignore[assignment]
    if name in AUXILIARY_WEIGHT:
        network.auxiliary_weight = AUXILIARY_WEIGHT[name]  # type: ignore[assignment]
    return network


def _call(builder: Any, name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return builder(**options)  # type: ignore[no-any-return]
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"backbone.name={name}: {' '.join(str(error).split())}") from error


def _download(builder: Any, name: str, image_size: int, options: dict[str, Any]) -> nn.Module:
    weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    size = _size(builder, image_size)
    if size and image_size != weights.meta.get("min_size", (224,))[0] and "image_size" not in size:
        raise UserError(f"backbone.name={name}: its weights are for one image size; set data.image_size to it")
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"backbone.pretrained=true: the weights of {name} could not be downloaded ({(str(error) or type(error).__name__).splitlines()[0]}); "
            "fetch them elsewhere and give backbone.weights=FILE"
        ) from error
    network = _call(builder, name, {**size, **options})
    if "image_size" in size:
        state = models.vision_transformer.interpolate_embeddings(image_size, network.patch_size, state)  # type: ignore[arg-type]
    network.load_state_dict(state, strict=name not in AUXILIARY_WEIGHT)
    return network


def _size(builder: Any, image_size: int) -> dict[str, Any]:
    """Returns the option by which a network of fixed size (ViT, MaxViT) learns the size."""
    if "vision_transformer" in builder.__module__:
        return {"image_size": image_size}
    if "maxvit" in builder.__module__:
        return {"input_size": (image_size, image_size)}
    return {}


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _resized(head: nn.Module, num_classes: int) -> nn.Module:
    """Returns a new head with as many inputs as the old one: linear, or SqueezeNet's 1×1 convolution."""
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    assert isinstance(head, nn.Conv2d)
    return nn.Conv2d(head.in_channels, num_classes, head.kernel_size)  # type: ignore[arg-type]


def adapt_stem(network: nn.Module, in_channels: int) -> None:
    """Replaces the first convolution by one for `in_channels`: its weights summed for grey, repeated for more."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    kept = {k: getattr(old, k) for k in inspect.signature(nn.Conv2d).parameters if k not in ("device", "dtype", "bias")}
    kept |= {"in_channels": in_channels, "bias": old.bias is not None}
    new = nn.Conv2d(**kept, device=old.weight.device)
    new.weight = nn.Parameter(adapt_input_conv(in_channels, old.weight.data))
    new.bias = old.bias
    network.set_submodule(name, new)
