"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): where an image has the evidence for a class."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

OTHER_TOKENS = 5  # at most, before those of the image's places: class, distillation, registers


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Returns the evidence for `classes (N,)` in `images (N, C, H, W)`, ready for the network, as heat maps
    `(N, h, w)` in [0, 1].

    The maps are those of the last layer that has several places; a transformer's tokens are laid out as maps.
    Where the head reads the class token alone, nothing depends on the last layer's other tokens: then the
    last layer of the same shape counts whose tokens have an influence, the input of the last attention. The
    network stays in evaluation mode; its parameters get no gradients, and no other process is talked to.
    Raises ValueError where the network is sharded, or its features have no place.
    """
    if isinstance(network, FSDPModule):
        raise ValueError("the network is sharded over processes")
    logits, features = run_and_keep_features(network, images)
    if not features:
        raise ValueError("no layer has maps of more than one place")
    score = logits.gather(1, classes[:, None]).sum()
    for output in reversed([output for output in features if output.shape == features[-1].shape]):
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True, materialize_grads=True)
        gradients = as_maps(gradient, images.shape[-2:])
        if gradients is not None and gradients.any():
            break
    maps = as_maps(output.detach(), images.shape[-2:])
    assert maps is not None and gradients is not None
    heat = (gradients.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def run_and_keep_features(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Runs the network; returns its logits and the outputs of all layers with several places, in order."""
    features, size = list[Tensor](), images.shape[-2:]

    def keep(module: nn.Module, inputs: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or len(output) != len(images) or as_maps(output, size) is None:
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


def as_maps(features: Tensor, size: Sequence[int]) -> Tensor | None:
    """Returns features of images of a height and width `size` as maps `(N, C, h, w)`; None where they do not
    have several places. Maps have the proportions of the images, in either order of axes; of tokens
    `(N, L, C)` the last ones are places, laid out in just these proportions."""
    if features.ndim == 3:
        for others in range(OTHER_TOKENS + 1):
            places = features.shape[1] - others
            height = round(math.sqrt(max(places, 0) * size[0] / size[1]))
            if height and places > 1 and height * size[1] * height == places * size[0]:
                return features[:, others:].unflatten(1, (height, -1)).permute(0, 3, 1, 2)
    elif features.ndim == 4:
        first, second, third = features.shape[1:]
        if alike(second, third, size) and second * third > 1:
            return features
        if alike(first, second, size) and first * second > 1:  # (N, h, w, C)
            return features.permute(0, 3, 1, 2)
    return None


def alike(height: int, width: int, size: Sequence[int]) -> bool:
    """Says whether maps may be of images of a size: of a square they are squares, else they have about its
    proportions, as layers round sides that they can't divide."""
    if size[0] == size[1]:
        return height == width
    return abs(height * size[1] - width * size[0]) <= max(size)
