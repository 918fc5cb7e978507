"""Networks of our own: sizes as published, shapes, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import nn

from imgcls.backbones.build import build_network
from imgcls.backbones.layers import head_names
from imgcls.errors import UserError

OWN = "imgcls.backbones"
CIFAR = f"{OWN}.resnet_cifar.resnet_cifar"
WIDE = f"{OWN}.wide_resnet.wide_resnet"
CNN = f"{OWN}.simple_cnn.simple_cnn"
RESNET = f"{OWN}.resnet.resnet"


def build(target: str, classes: int = 10, channels: int = 3, size: int = 32, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build_network({"_target_": target, **options}, classes, channels, size)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    (
        "depth",
        "millions",
        "exact",
    ),  # He et al. 2015, table 6; exact as in github.com/akamaster/pytorch_resnet_cifar10
    [
        (20, 0.27, 269_722),
        (32, 0.46, 464_154),
        (44, 0.66, 658_586),
        (56, 0.85, 853_018),
        (110, 1.7, 1_727_962),
    ],
)
def test_resnet_cifar_is_as_large_as_published(depth: int, millions: float, exact: int) -> None:
    network = build(CIFAR, depth=depth)
    assert parameters(network) == exact
    assert exact / 1e6 == pytest.approx(millions, abs=0.03)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_wide_resnet_is_as_large_as_published() -> None:
    assert parameters(build(WIDE, depth=28, widen=10)) / 1e6 == pytest.approx(36.5, abs=0.05)
    assert parameters(build(WIDE, depth=16, widen=8)) / 1e6 == pytest.approx(11.0, abs=0.05)


def test_simple_cnn_size() -> None:
    convolutions = 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    norms = 2 * 2 * (32 + 64 + 128)
    assert parameters(build(CNN, width=32)) == convolutions + norms + 128 * 10 + 10
    assert build(CNN, dropout=0.3).get_submodule("pool.2").p == 0.3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("target", "size"), [(CIFAR, 32), (CIFAR, 8), (WIDE, 32), (CNN, 8), (RESNET, 32), (RESNET, 224)]
)
def test_logits_and_head(target: str, size: int, channels: int) -> None:
    options = {"depth": 16, "widen": 1} if target == WIDE else {}
    network = build_network({"_target_": target, **options}, 7, channels, size)
    assert [network.get_submodule(name).out_features for name in head_names(network)] == [7]
    logits = network.eval()(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("target", [CIFAR, WIDE, CNN, RESNET])
def test_initial_logits_are_of_a_moderate_size(target: str) -> None:
    torch.manual_seed(0)
    options = {"depth": 16, "widen": 2} if target == WIDE else {}
    network = build_network({"_target_": target, **options}, 10, 3, 32).train()
    loss = nn.functional.cross_entropy(network(torch.randn(32, 3, 32, 32)), torch.arange(32) % 10)
    assert 2.0 < loss.item() < 5.0  # chance is ln 10 = 2.3
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


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
def test_resnet_stem(size: int, stem: str, small: bool) -> None:
    network = build(RESNET, channels=1, size=size, depth=18, stem=stem)
    kernel, stride = ((3, 3), (1, 1)) if small else ((7, 7), (2, 2))
    stem_layer = network.get_submodule("conv1")
    assert isinstance(stem_layer, nn.Conv2d)
    assert (stem_layer.kernel_size, stem_layer.stride, stem_layer.in_channels) == (kernel, stride, 1)
    assert isinstance(network.maxpool, nn.Identity) == small
    features: Any = nn.Sequential(*list(network.children())[:-2])
    side = size // 8 if small else -(-size // 32)
    assert features(torch.empty(2, 1, size, size, device="meta")).shape == (2, 512, side, side)


def test_resnet18_with_the_cifar_stem_has_the_known_size() -> None:
    assert parameters(build(RESNET)) == 11_173_962  # as github.com/kuangliu/pytorch-cifar's ResNet18


@pytest.mark.parametrize(
    ("target", "depth", "message"),
    [
        (CIFAR, 18, r"backbone\.depth=18: expected 6n\+2, such as 20"),
        (CIFAR, 2, r"backbone\.depth=2: expected 6n\+2"),
        (WIDE, 20, r"backbone\.depth=20: expected 6n\+4, such as 16"),
        (WIDE, 4, r"backbone\.depth=4: expected 6n\+4"),
        (RESNET, 19, r"resnet19: torchvision has no such network; did you mean 'resnet18'"),
        (RESNET, "deep", r"backbone\.depth=deep"),
    ],
)
def test_wrong_depth(target: str, depth: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(target, depth=depth)


@pytest.mark.parametrize(("size", "stem"), [(32, "auto"), (224, "cifar")])
def test_pretrained_weights_have_no_cifar_stem(size: int, stem: str) -> None:
    with pytest.raises(UserError, match=r"backbone\.pretrained=true.*backbone\.stem=imagenet") as caught:
        build(RESNET, size=size, stem=stem, pretrained=True)
    assert "\n" not in str(caught.value)


def test_unknown_stem_and_key() -> None:
    with pytest.raises(UserError, match=r"backbone\.stem=tiny"):
        build(RESNET, stem="tiny")
    with pytest.raises(UserError, match=r"backbone\.deph: .* did you mean 'depth'"):
        build(CIFAR, deph=20)
