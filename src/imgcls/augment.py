"""Augmentation of training images: one image at a time in the workers, the rest on the batch, on the device.

Every draw differs for each sample. torchvision's own transforms draw once for a whole batch, so they are
used in the workers alone; flips, crops of small images, mixing and erasing are written for batches here.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from imgcls.config import build
from imgcls.data.spec import DataSpec
from imgcls.errors import UserError

SMALL = 64  # up to this image size, "auto" crops from a padded image instead of resizing


@dataclass(frozen=True)
class Mix:
    """Mixing of two images with a weight from Beta(alpha, alpha), for each sample with this probability."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    alpha: float = 1.0
    probability: float = 0.0


@dataclass(frozen=True)
class Augment:
    """What is done to training images; the defaults do nothing.

    Args:
        crop: "padded": a random crop of the image padded by `padding` (a share of its side); "resized": a
            random area and ratio (Szegedy et al. 2014); "auto": the first for small images, else the second.
        scale, ratio: of the "resized" crop: share of the area, and width to height.
        flip: probability of mirroring; null: a half where a mirrored picture keeps its class (`DataSpec.mirror`).
        policy: a transform of one uint8 image `(C, H, W)`, by `_target_`, drawn in the workers.
        erase: probability of erasing a rectangle (Zhong et al. 2017).
        mixup, cutmix: Zhang et al. 2017, Yun et al. 2019; a sample gets one of them at the most.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    crop: Literal["none", "padded", "resized", "auto"] = "none"
    padding: float = 0.125
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float | None = 0.0
    policy: dict[str, Any] | None = None
    erase: float = 0.0
    mixup: Mix = field(default_factory=Mix)
    cutmix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        shares = {"flip": self.flip or 0.0, "erase": self.erase, "padding": self.padding}
        shares |= {"mixup.probability + cutmix.probability": self.mixup.probability + self.cutmix.probability}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UserError(f"augment.{name}={share}: expected a number from 0 to 1")
        if min(self.mixup.alpha, self.cutmix.alpha) <= 0:
            raise UserError("augment.mixup.alpha and augment.cutmix.alpha: expected a number above 0")

    def crop_of(self, spec: DataSpec) -> str:
        """Returns the kind of crop for this data, "auto" decided."""
        return self.crop if self.crop != "auto" else "padded" if spec.image_size <= SMALL else "resized"


def worker_transform(augment: Augment, spec: DataSpec, otherwise: nn.Module | None = None) -> nn.Module | None:
    """Returns what a worker does to one training image; `otherwise` where the crop is not "resized", which brings
    images to their size, or nothing."""
    first = otherwise
    if augment.crop_of(spec) == "resized":
        interpolation = InterpolationMode(spec.interpolation)
        first = v2.RandomResizedCrop(spec.image_size, augment.scale, augment.ratio, interpolation, antialias=True)
    policy = None if augment.policy is None else build(augment.policy, "augment.policy", nn.Module)
    if policy is None and first is otherwise:
        return otherwise
    return v2.Compose([step for step in (first, policy) if step is not None])


class BatchAugment(nn.Module):
    """The part of an `Augment` that works on a batch, where the batch is."""

    def __init__(self, augment: Augment, spec: DataSpec) -> None:
        super().__init__()
        self.augment = augment
        self.flip = augment.flip if augment.flip is not None else 0.5 * spec.mirror
        self.padding = augment.padding if augment.crop_of(spec) == "padded" else 0.0
        self.num_classes = spec.num_classes

    def pixels(self, images: Tensor) -> Tensor:
        """Crops and mirrors `images (N, C, H, W) uint8`, all in one gather."""
        n, _, height, width = images.shape
        device, pad = images.device, round(self.padding * height)
        if not pad and not self.flip:
            return images
        rows = torch.arange(height, device=device).expand(n, height)
        columns = torch.arange(width, device=device).expand(n, width)
        if self.flip:
            mirrored = torch.rand(n, 1, device=device) < self.flip
            columns = torch.where(mirrored, width - 1 - columns, columns)
        if pad:
            images = F.pad(images, (pad, pad, pad, pad))
            rows = rows + torch.randint(0, 2 * pad + 1, (n, 1), device=device)
            columns = columns + torch.randint(0, 2 * pad + 1, (n, 1), device=device)
        sample = torch.arange(n, device=device)[:, None, None]
        gathered = images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
        return gathered.permute(0, 3, 1, 2)

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Erases and mixes normalised `images (N, C, H, W)`; mixed targets are shares `(N, K)`."""
        augment = self.augment
        if augment.erase:
            area = torch.empty(len(images), device=images.device).uniform_(0.02, 0.33)  # the paper's range
            images = images.masked_fill(rectangles(images, area) & chosen(images, augment.erase), 0.0)
        mixup, cutmix = augment.mixup, augment.cutmix
        if not mixup.probability and not cutmix.probability:
            return images, targets
        draw = torch.rand(len(images), 1, 1, 1, device=images.device)
        outside = ~rectangles(images, 1 - _beta(images, cutmix.alpha))
        share = _beta(images, mixup.alpha)[:, None, None, None]
        share = torch.where(draw < cutmix.probability + mixup.probability, share, 1.0)
        weight = torch.where(draw < cutmix.probability, outside, share).to(images.dtype)  # of the own image, by pixel
        other = torch.randperm(len(images), device=images.device)
        images = images * weight + images[other] * (1 - weight)
        hot = F.one_hot(targets, self.num_classes).to(images.dtype)
        share = weight.mean((1, 2, 3)).unsqueeze(1)
        return images, hot * share + hot[other] * (1 - share)


def chosen(images: Tensor, probability: float) -> Tensor:
    """Returns a mask `(N, 1, 1, 1)` that holds for each sample with this probability."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) < probability


def rectangles(images: Tensor, area: Tensor) -> Tensor:
    """Returns a mask `(N, 1, H, W)` with a random rectangle of the share `area (N,)` in each image.

    Its centre is anywhere, so that a part can lie outside (as in CutMix, Yun et al. 2019).
    """
    n, _, height, width = images.shape
    side = area.sqrt()

    def inside(length: int) -> Tensor:
        centre = torch.rand(n, 1, device=images.device) * length
        place = torch.arange(length, device=images.device) + 0.5
        return (place - centre).abs() <= side[:, None] * length / 2

    return inside(height)[:, None, :, None] & inside(width)[:, None, None, :]


def _beta(images: Tensor, alpha: float) -> Tensor:
    concentration = torch.full((len(images),), alpha, device=images.device)
    return torch.distributions.Beta(concentration, concentration, validate_args=False).sample()


class ThreeAugment(v2.Compose):
    """3-Augment: grey, solarised or blurred, one of them, and a slight colour jitter (Touvron et al. 2022, DeiT III)."""

    def __init__(self, jitter: float = 0.3) -> None:
        one = [v2.RandomGrayscale(p=1.0), v2.RandomSolarize(threshold=128, p=1.0), v2.GaussianBlur(5, (0.1, 2.0))]
        super().__init__([v2.RandomChoice(one), v2.ColorJitter(jitter, jitter, jitter)])
