"""ResNet-18, -34, -50 and deeper (He et al. 2015, arXiv:1512.03385), with a stem for small images.

The usual stem halves the resolution twice before the first block, which leaves a 32×32 image 8×8 pixels.
The CIFAR stem is one 3×3 convolution of stride 1 and no pooling (as in github.com/kuangliu/pytorch-cifar).
"""

from typing import Literal

from torch import nn

from imgcls.backbones.torchvision import torchvision_network
from imgcls.errors import UserError
from imgcls.spec import ImageSize, sides


def resnet(
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    depth: int = 18,
    stem: Literal["auto", "cifar", "imagenet"] = "auto",
    pretrained: bool = False,
) -> nn.Module:
    """Returns a ResNet. Stem "auto": "cifar" up to 64×64 pixels, "imagenet" above."""
    height, width = sides(image_size)
    small = stem == "cifar" or (stem == "auto" and height * width <= 64**2)
    if small and pretrained:
        taken = f"images of {height}×{width} pixels take the CIFAR stem, the weights are of the ImageNet stem"
        advice = "add backbone.stem=imagenet or data.image_size=224"
        raise UserError(f"backbone.pretrained=true: {taken}; {advice}")
    network = torchvision_network(num_classes, in_channels, image_size, f"resnet{depth}", pretrained)
    if small:
        network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network
