"""The layers of a network in order, from the input to the heads, which give the logits."""

from typing import Any

import torch
from torch import nn
from torchvision.models.vision_transformer import Encoder

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Encoder)


def layers(network: nn.Module) -> dict[str, int]:
    """Returns the number of the layer of each parameter: 0 at the input, the highest for the heads.
    timm's networks say their layers. Of others, each child is a layer, or each child of a container."""
    heads = tuple(f"{head}." for head in head_names(network))
    names = [name for name, _ in network.named_parameters()]
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters  # takes 2 s

        matcher = network.group_matcher(coarse=False)  # type: ignore[operator]
        number = group_parameters(network, matcher, reverse=True)
    else:
        blocks = [block for block in block_names(network) if not block.startswith(heads)]
        number = dict.fromkeys(names, 0)
        for i, block in enumerate(blocks):
            number |= {name: i for name in names if name.startswith(block)}
    body = sorted({number[name] for name in names if not name.startswith(heads)})
    return {name: len(body) if name.startswith(heads) else body.index(number[name]) for name in names}


def block_names(module: nn.Module, prefix: str = "") -> list[str]:
    """Returns the names of the children that have parameters, each with a dot at its end."""
    names = []
    for name, child in module.named_children():
        if isinstance(child, CONTAINERS):
            names += block_names(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            names.append(f"{prefix}{name}.")
    return names


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Returns the names of a network's heads, the main one first; none where the network says none."""
    return tuple(getattr(network, "head_names", ()))


def last_layer(network: nn.Module, outputs: int) -> tuple[str, ...]:
    """Returns the name of the last layer with so many outputs, which is the head of a network that says none;
    nothing where there is no such layer."""
    kinds = (nn.Linear, nn.Conv2d)
    known = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, kinds)]
    return tuple([name for name, layer in known if len(layer.weight) == outputs][-1:])


def reset_head(network: nn.Module) -> None:
    """Starts the heads at zero (Kolesnikov et al. 2019, BiT): the first loss is the same at any scale of the
    features, and trained weights below get no gradients of random logits. A head that is a convolution keeps
    its weights: SqueezeNet's goes into a ReLU, which has no gradient at 0."""
    for name in head_names(network):
        head = network.get_submodule(name)
        for parameter in head.parameters() if isinstance(head, nn.Linear) else ():
            nn.init.zeros_(parameter)


def on_meta(network: nn.Module, *shape: int) -> Any:
    """Returns a network's output for images of a shape, computed on shapes alone: milliseconds, no memory."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    return torch.func.functional_call(network, state, torch.empty(shape, device="meta"))


def flops(network: nn.Module, *shape: int) -> int:
    """Returns the floating-point operations (two for a multiply-add) of images of a shape, forward."""
    from torch.utils.flop_counter import FlopCounterMode

    training = network.training
    with FlopCounterMode(display=False) as counter:
        on_meta(network.eval(), *shape)
    network.train(training)
    return counter.get_total_flops()
