"""A plain convolutional network for small images: three stages of two 3×3 convolutions each."""

from torch import nn

from imgcls.errors import UserError
from imgcls.spec import ImageSize


def simple_cnn(
    num_classes: int, in_channels: int, image_size: ImageSize, width: int = 32, dropout: float = 0.0
) -> nn.Module:
    """Returns stages of `width`, 2 and 4 times `width` channels, each at half the resolution before it."""
    if width < 1:
        raise UserError(f"backbone.width={width}: expected 1 or more")
    layers: list[nn.Module] = []
    channels = in_channels
    for stage, stage_width in enumerate((width, 2 * width, 4 * width)):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2):
            layers.append(nn.Conv2d(channels, stage_width, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(stage_width), nn.ReLU(inplace=True)]
            channels = stage_width
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*layers))
    network.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)))
    network.add_module("head", nn.Linear(channels, num_classes))
    network.head_names = ("head",)  # type: ignore[assignment]
    return network
