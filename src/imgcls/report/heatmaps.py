"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): where in an image a network finds its evidence for a class."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Returns the evidence for `classes (N,)` in `images (N, C, H, W)`, ready for the network: `(N, h, w)` in [0, 1].

    The maps are those of the last layer that has any, `h·w > 1`. The network is left in evaluation mode; its
    parameters get no gradients, and no other process is talked to.

    Raises:
        ValueError: the network is sharded, or its last features are tokens (as a ViT's) or have no place.
    """
    if isinstance(network, FSDPModule):
        raise ValueError("the network is sharded over processes")
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not (isinstance(output, Tensor) and output.ndim in (3, 4) and is_spatial(output)):
            return None
        seen.append(output)
        return output.clone()  # the next layer may work in place

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        with torch.enable_grad():  # of the images too: all parameters may be frozen
            logits = network.eval().forward(
                images.detach().requires_grad_()
            )  # not compiled: that may pass hooks by
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or seen[-1].ndim == 3:
        raise ValueError(
            "its last features are tokens" if seen else "no layer has maps of more than one place"
        )
    (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), seen[-1])
    maps = seen[-1].detach()
    if channels_are_last(maps):
        maps, gradients = maps.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)
    heat = (gradients.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def is_spatial(output: Tensor) -> bool:
    """Whether features have several places: tokens `(N, L, C)`, or maps, which are square as the images are."""
    first, second, *last = output.shape[1:]
    return first > 1 if not last else (second == last[0] > 1) or channels_are_last(output)


def channels_are_last(maps: Tensor) -> bool:
    """Whether maps are `(N, H, W, C)`."""
    return maps.shape[1] == maps.shape[2] != maps.shape[3] and maps.shape[1] > 1
