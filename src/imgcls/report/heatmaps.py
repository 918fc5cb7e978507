"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): where in an image a network finds its evidence for a class."""

import math

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

OTHER_TOKENS = 5  # at most, before those of the image's places: class, distillation, registers


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Returns the evidence for `classes (N,)` in `images (N, C, H, W)`, ready for the network: `(N, h, w)` in [0, 1].

    The maps are those of the last layer that has any, `h·w > 1`; a transformer's tokens are laid out as maps. Where
    the head reads the class token alone, nothing depends on the last layer's other tokens: then the last layer of
    the same shape counts whose tokens have an influence, the input of the last attention. The network stays in
    evaluation mode; its parameters get no gradients, and no other process is talked to.

    Raises:
        ValueError: the network is sharded, or its features have no place.
    """
    if isinstance(network, FSDPModule):
        raise ValueError("the network is sharded over processes")
    logits, features = run_and_keep_features(network, images)
    if not features:
        raise ValueError("no layer has maps of more than one place")
    score = logits.gather(1, classes[:, None]).sum()
    for output in reversed([output for output in features if output.shape == features[-1].shape]):
        (gradient,) = torch.autograd.grad(
            score, output, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        maps, gradients = as_maps(output.detach()), as_maps(gradient)
        if gradients.any():
            break
    heat = (gradients.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def run_and_keep_features(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Runs the network; returns its logits and the outputs of all layers that have several places, in order."""
    features: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or len(output) != len(images) or not is_spatial(output):
            return None
        features.append(output)
        return output.clone()  # the next layer may work in place

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        with torch.enable_grad():  # of the images too: all parameters may be frozen
            # forward, not the call: a compiled call may pass the hooks by
            return network.eval().forward(images.detach().requires_grad_()), features
    finally:
        for hook in hooks:
            hook.remove()


def is_spatial(output: Tensor) -> bool:
    """Whether features have several places: tokens `(N, L, C)`, or maps, which are square as the images are."""
    if output.ndim == 3:
        tokens = output.shape[1]
        return tokens > 1 and tokens - math.isqrt(tokens) ** 2 <= OTHER_TOKENS
    return output.ndim == 4 and (output.shape[2] == output.shape[3] > 1 or channels_are_last(output))


def channels_are_last(maps: Tensor) -> bool:
    """Whether maps are `(N, H, W, C)`."""
    return maps.shape[1] == maps.shape[2] != maps.shape[3] and maps.shape[1] > 1


def as_maps(features: Tensor) -> Tensor:
    """Returns features as `(N, C, h, w)`: maps of either order, or tokens `(N, L, C)` of which the last are places."""
    if features.ndim == 3:
        side = math.isqrt(features.shape[1])
        return features[:, -side * side :].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return features.permute(0, 3, 1, 2) if channels_are_last(features) else features
