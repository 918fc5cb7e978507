"""Grad-CAM: evidence lies where it is known to lie, for maps and for tokens."""

from typing import Any

import pytest
import timm
import torch
import torchvision.models
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from imgcls.report.heatmaps import grad_cam


class Corner(nn.Module):
    """Class 0 speaks for bright places, class 1 for dark ones; what a heat map must show is known."""

    def __init__(self, last_channels: bool, in_place: bool) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 3, 1)
        with torch.no_grad():
            self.maps.weight.copy_(torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1, 1))
            assert self.maps.bias is not None
            self.maps.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        self.last = nn.ReLU(inplace=in_place)
        self.last_channels, self.in_place = last_channels, in_place

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maps(images)
        maps = self.last(maps.permute(0, 2, 3, 1) if self.last_channels else maps)
        if self.in_place:
            maps.add_(1)
        return maps.mean((1, 2) if self.last_channels else (2, 3))[:, :2]


@pytest.mark.parametrize("last_channels", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_finds_the_corner(last_channels: bool, in_place: bool, frozen: bool) -> None:
    network = Corner(last_channels, in_place).requires_grad_(not frozen)
    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, 0, 0], images[1, 0, 3, 2] = 1.0, 0.5
    heat = grad_cam(network, images, torch.tensor([0, 0]))
    torch.testing.assert_close(heat, images[:, 0] / images.amax((1, 2, 3))[:, None, None])
    torch.testing.assert_close(grad_cam(network, images, torch.tensor([1, 1]))[0], 1 - images[0, 0])
    assert all(p.grad is None for p in network.parameters()) and torch.is_grad_enabled()
    assert not any(m._forward_hooks for m in network.modules())


class Tokens(nn.Module):
    """As `Corner`, with tokens, of which a class token takes the mean and alone is read."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others, self.embed, self.last = others, nn.Identity(), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(2).transpose(1, 2)
        places = torch.cat([bright, 1 - bright], 2)
        tokens = self.embed(torch.cat([torch.zeros(len(images), self.others, 2), places], 1))
        return self.last(tokens + tokens.mean(1, keepdim=True))[:, 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("others", [1, 2, 5])
def test_grad_cam_finds_the_corner_among_tokens(others: int) -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, 0, 0], images[1, 0, 3, 2] = 1.0, 0.5
    heat = grad_cam(Tokens(others), images, torch.tensor([0, 0]))
    torch.testing.assert_close(heat, images[:, 0] / images.amax((1, 2, 3))[:, None, None])
    heat = grad_cam(Tokens(others), images, torch.tensor([1, 1]))
    torch.testing.assert_close(heat[0], 1 - images[0, 0])


@pytest.mark.parametrize(
    ("network", "side"),
    [
        (timm.create_model("vit_small_patch16_224", num_classes=3), 14),
        (timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3), 14),
        (timm.create_model("deit_tiny_patch16_224", num_classes=3), 14),
        (torchvision.models.swin_t(num_classes=3), 7),
        (timm.create_model("swin_tiny_patch4_window7_224", num_classes=3), 7),
        (VisionTransformer(224, 32, 2, 2, 24, 24, num_classes=3), 7),
    ],
    ids=["vit_small", "deit_tiny distilled", "deit_tiny", "swin_t", "timm swin", "torchvision vit"],
)
def test_grad_cam_of_transformers(network: nn.Module, side: int) -> None:
    """With weights drawn at random, as no trained ones are here; a head of zeros would have no evidence."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    heat = grad_cam(network, torch.randn(2, 3, 224, 224), torch.tensor([0, 2]))
    assert heat.shape == (2, side, side) and heat.min() >= 0
    assert torch.equal(heat.amax((1, 2)), torch.ones(2))
    assert all((one > 0).any() and one.std() > 0.01 for one in heat)


@pytest.mark.parametrize("head", ["avg", "token", "map"])
def test_grad_cam_whatever_the_head_reads(head: str) -> None:
    small: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 12,
        "depth": 2,
        "num_heads": 1,
        "num_classes": 3,
    }
    small |= {"global_pool": head, "class_token": head == "token", "reg_tokens": 4}
    network = TimmViT(**small)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    heat = grad_cam(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))
    assert heat.shape == (2, 8, 8) and torch.equal(heat.amax((1, 2)), torch.ones(2))


def test_grad_cam_without_places() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    with pytest.raises(ValueError, match="no layer has maps of more than one place"):
        grad_cam(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_maps_of_a_rectangle(name: str) -> None:
    small: dict[str, dict[str, Any]] = {"res": {}}
    small["vit"] = {"depth": 2, "embed_dim": 12, "num_heads": 2, "img_size": (64, 160)}
    small["swi"] = {"depths": (1, 1), "embed_dim": 12, "num_heads": (2, 2), "img_size": (64, 160)}
    network = timm.create_model(name, num_classes=3, **small[name[:3]])
    heat = grad_cam(network, torch.randn(2, 3, 64, 160), torch.tensor([0, 2]))
    assert heat.shape == {"vit": (2, 4, 10), "swi": (2, 8, 20), "res": (2, 2, 5)}[name[:3]]
    assert heat.min() >= 0 and heat.max() <= 1
