"""The residual networks of He et al. 2015 (arXiv:1512.03385, section 4.2) for 32×32 images: 6n+2 layers.

Shortcuts have no parameters (option A: every second pixel, new channels zero). Modules are named as in
github.com/akamaster/pytorch_resnet_cifar10, so the public weights of that family fit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.errors import UserError


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.new_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.new_channels:
            half = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """Stem, three stages of `blocks` blocks with 16, 32 and 64 channels, mean over pixels, linear head."""

    head_names = ("linear",)

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, (2, 3)))  # type: ignore[no-any-return]


def resnet_cifar(num_classes: int, in_channels: int, image_size: int, depth: int = 20) -> nn.Module:
    """Returns the network with `depth` layers: 20, 32, 44, 56, 110, or any other 6n+2."""
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"backbone.depth={depth}: expected 6n+2, such as 20, 32, 44, 56 or 110")
    return CifarResNet((depth - 2) // 6, num_classes, in_channels)
