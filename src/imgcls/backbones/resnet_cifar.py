"""The residual networks of He et al. 2015 (arXiv:1512.03385, section 4.2) for 32×32 images: 6n+2 layers.

Shortcuts have no parameters (option A: every second pixel, new channels zero). Modules are named as in
github.com/akamaster/pytorch_resnet_cifar10, so the public weights of that family fit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from imgcls.errors import UserError
from imgcls.spec import ImageSize


class Shortcut(nn.Module):
    """Takes every second pixel of `(N, C, H, W)` and adds C channels of zeros, half of them before."""

    def forward(self, x: Tensor) -> Tensor:
        new = x.shape[1]
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new // 2, new - new // 2))


class CifarResNet(nn.Module):
    """Stem, three stages of `blocks` blocks with 16, 32 and 64 channels, mean over pixels, linear head."""

    head_names = ("linear",)

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        rest = range(blocks - 1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), *(BasicBlock(16, 16) for _ in rest))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2, Shortcut()), *(BasicBlock(32, 32) for _ in rest))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2, Shortcut()), *(BasicBlock(64, 64) for _ in rest))
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, (2, 3)))


def resnet_cifar(num_classes: int, in_channels: int, image_size: ImageSize, depth: int = 20) -> nn.Module:
    """Returns the network with `depth` layers: 20, 32, 44, 56, 110, or any other 6n+2."""
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"backbone.depth={depth}: expected 6n+2, such as 20, 32, 44, 56 or 110")
    return CifarResNet((depth - 2) // 6, num_classes, in_channels)
