"""Wide residual networks for small images (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.errors import UserError
from imgcls.spec import ImageSize


class Block(nn.Module):
    """Pre-activation block: norm, ReLU, 3×3 convolution, twice, with dropout between."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = in_channels == channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True) if self.shortcut is not None else F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(self.dropout(F.relu(self.bn2(out), inplace=True)))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Stem, three stages of `blocks` blocks with 16, 32 and 64 times `widen` channels, norm, mean, head."""

    head_names = ("linear",)

    def __init__(self, blocks: int, widen: int, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        stages, channels = [], 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for block in range(blocks):
                stages.append(Block(channels, width, 2 if stage and not block else 1, dropout))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(images))), inplace=True)
        return self.linear(torch.mean(x, (2, 3)))


def wide_resnet(
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0,
) -> nn.Module:
    """Returns WRN-`depth`-`widen`; depth is 6n+4."""
    if depth < 10 or (depth - 4) % 6:
        raise UserError(f"backbone.depth={depth}: expected 6n+4, such as 16, 22, 28 or 40")
    return WideResNet((depth - 4) // 6, widen, num_classes, in_channels, dropout)
