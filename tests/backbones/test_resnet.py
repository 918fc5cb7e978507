"""ResNet with torchvision's blocks: its stems, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.networks import built, check_first_logits, check_logits_and_head, parameters
from torch import nn

from imgcls.errors import UserError

RESNET = "imgcls.backbones.resnet.resnet"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 224])
def test_logits_and_head(size: int, channels: int) -> None:
    check_logits_and_head(RESNET, size, channels)


def test_first_logits() -> None:
    check_first_logits(RESNET)


@pytest.mark.parametrize(
    ("size", "stem", "small"),
    [
        (32, "auto", True),
        (64, "auto", True),
        (65, "auto", False),
        (32, "imagenet", False),
        (224, "cifar", True),
    ],
)
def test_stem(size: int, stem: str, small: bool) -> None:
    network = built(RESNET, channels=1, size=size, depth=18, stem=stem)
    kernel, stride = ((3, 3), (1, 1)) if small else ((7, 7), (2, 2))
    stem_layer = network.get_submodule("conv1")
    assert isinstance(stem_layer, nn.Conv2d)
    assert (stem_layer.kernel_size, stem_layer.stride, stem_layer.in_channels) == (kernel, stride, 1)
    assert isinstance(network.maxpool, nn.Identity) == small
    features: Any = nn.Sequential(*list(network.children())[:-2])
    side = size // 8 if small else -(-size // 32)
    assert features(torch.empty(2, 1, size, size, device="meta")).shape == (2, 512, side, side)


def test_the_size_with_the_cifar_stem() -> None:
    assert parameters(built(RESNET)) == 11_173_962  # as github.com/kuangliu/pytorch-cifar's ResNet18


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (19, r"resnet19: torchvision has no such network; did you mean 'resnet18'"),
        ("deep", r"backbone\.depth=deep"),
    ],
)
def test_wrong_depth(depth: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(RESNET, depth=depth)


@pytest.mark.parametrize(("size", "stem"), [(32, "auto"), (224, "cifar")])
def test_pretrained_weights_have_no_cifar_stem(size: int, stem: str) -> None:
    with pytest.raises(UserError, match=r"backbone\.pretrained=true.*backbone\.stem=imagenet") as caught:
        built(RESNET, size=size, stem=stem, pretrained=True)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_to_add(said: Callable[..., str]) -> None:
    message = said("train", "backbone=resnet18", "backbone.pretrained=true")
    assert "add backbone.stem=imagenet or data.image_size=224" in message


def test_unknown_stem() -> None:
    with pytest.raises(UserError, match=r"backbone\.stem=tiny"):
        built(RESNET, stem="tiny")
