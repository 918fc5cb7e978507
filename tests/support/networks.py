"""Networks of our own: built without memory, and what holds for each."""

from typing import Any

import torch
from torch import nn

from imgcls.backbones.build import build_network
from imgcls.backbones.layers import head_names


def built(target: str, classes: int = 10, channels: int = 3, size: int = 32, **options: Any) -> nn.Module:
    """Returns a network on the meta device."""
    with torch.device("meta"):
        return build_network({"_target_": target, **options}, classes, channels, size)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def check_logits_and_head(target: str, size: int, channels: int, **options: Any) -> None:
    network = build_network({"_target_": target, **options}, 7, channels, size)
    assert [network.get_submodule(name).out_features for name in head_names(network)] == [7]
    logits = network.eval()(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def check_first_logits(target: str, **options: Any) -> None:
    """Checks that an untrained network says about nothing, and that all its parameters learn."""
    torch.manual_seed(0)
    network = build_network({"_target_": target, **options}, 10, 3, 32).train()
    loss = nn.functional.cross_entropy(network(torch.randn(32, 3, 32, 32)), torch.arange(32) % 10)
    assert 2.0 < loss.item() < 5.0  # chance is ln 10 = 2.3
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def squares_alone(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A backbone that says by its types that it takes squares."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
