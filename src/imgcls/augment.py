"""Augment: the settings of augmentation. The workers apply `worker_transform` to an image.

The device that trains applies `BatchAugment` to a batch, with draws of their own for each sample:
torchvision's transforms draw once for a whole batch.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from imgcls.config.build import build
from imgcls.errors import UserError
from imgcls.spec import DataSpec, Part, Share


def rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the smaller number first")
    return pair


Parts = Annotated[tuple[Part, Part], AfterValidator(rising)]
Ratios = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(rising)]
SMALL = 64  # up to this image size, "auto" crops from a padded image instead of resizing


@dataclass(frozen=True)
class Mix:
    """Mixing of two images with a weight from Beta(alpha, alpha), for each sample with this probability."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    alpha: PositiveFloat = 1.0
    probability: Share = 0.0


@dataclass(frozen=True)
class Augment:
    """What is done to training images; the defaults do nothing.

    Args:
        crop: "padded": a random crop of the image padded by `padding` (a share of its side); "resized": a
            random area and ratio (Szegedy et al. 2014); "auto": the first for small images, else the second.
        scale, ratio: of the "resized" crop: share of the area, and width to height.
        flip: probability of mirroring; null: a half where `DataSpec.mirror` says that classes stay.
        policy: a transform of one uint8 image `(C, H, W)`, by `_target_`, drawn in the workers.
        erase: probability of erasing a rectangle (Zhong et al. 2017).
        mixup, cutmix: Zhang et al. 2017, Yun et al. 2019; a sample gets one of them at the most.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    crop: Literal["none", "padded", "resized", "auto"] = "none"
    padding: Share = 0.125
    scale: Parts = (0.08, 1.0)
    ratio: Ratios = (3 / 4, 4 / 3)
    flip: Share | None = 0.0
    policy: dict[str, Any] | None = None
    erase: Share = 0.0
    mixup: Mix = field(default_factory=Mix)
    cutmix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        mixed = self.mixup.probability + self.cutmix.probability
        if mixed > 1:
            given = f"augment.mixup.probability + cutmix.probability={mixed}"
            raise UserError(f"{given}: expected a number from 0 to 1")

    def crop_of(self, spec: DataSpec) -> str:
        """Returns the kind of crop for this data, "auto" decided."""
        return self.crop if self.crop != "auto" else "padded" if spec.image_size <= SMALL else "resized"


def worker_transform(augment: Augment, spec: DataSpec, default: nn.Module | None = None) -> nn.Module | None:
    """Returns a worker's transform of a training image: a resized crop, else `default`; then the policy."""
    first = default
    if augment.crop_of(spec) == "resized":
        size, mode = spec.image_size, v2.InterpolationMode(spec.interpolation)
        first = v2.RandomResizedCrop(size, augment.scale, augment.ratio, mode, antialias=True)
    policy = None if augment.policy is None else build(augment.policy, "augment.policy", nn.Module)
    if policy is None and first is default:
        return default
    return v2.Compose([step for step in (first, policy) if step is not None])


class ThreeAugment(v2.Compose):
    """3-Augment (DeiT III, Touvron et al. 2022): grey, solarised or blurred, then a slight colour jitter."""

    def __init__(self, jitter: float = 0.3) -> None:
        one = [v2.RandomGrayscale(p=1.0), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(5, (0.1, 2.0))]
        super().__init__([v2.RandomChoice(one), v2.ColorJitter(jitter, jitter, jitter)])


class BatchAugment(nn.Module):
    """The part of an `Augment` that works on a batch, where the batch is."""

    def __init__(self, augment: Augment, spec: DataSpec) -> None:
        super().__init__()
        self.augment = augment
        self.flip = augment.flip if augment.flip is not None else 0.5 * spec.mirror
        self.padding = augment.padding if augment.crop_of(spec) == "padded" else 0.0
        self.num_classes, self.spec = spec.num_classes, spec

    def pixels(self, images: Tensor) -> Tensor:
        """Crops and mirrors `images (N, C, H, W) uint8`, all in one gather."""
        n, _, height, width = images.shape
        device, pad = images.device, round(self.padding * height)
        if not pad and not self.flip:
            return images
        rows = torch.arange(height, device=device).expand(n, height)
        columns = torch.arange(width, device=device).expand(n, width)
        if self.flip:
            columns = torch.where(drawn(images, n, 1) < self.flip, width - 1 - columns, columns)
        if pad:
            images = F.pad(images, (pad, pad, pad, pad))
            rows = rows + torch.randint(0, 2 * pad + 1, (n, 1), device=device)
            columns = columns + torch.randint(0, 2 * pad + 1, (n, 1), device=device)
        sample = torch.arange(n, device=device)[:, None, None]
        return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def shown(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `images (N, C, H, W) uint8` as training gets them, in uint8 again, and their targets."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.spec.mean, self.spec.std))
        mixed, targets = self.mix((self.pixels(images) / 255 - mean) / std, targets)
        return ((mixed * std + mean) * 255).round().clamp(0, 255).byte(), targets

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Erases and mixes normalised `images (N, C, H, W)`; mixed targets are shares `(N, K)`."""
        augment = self.augment
        if augment.erase:
            mask = patches(images)
            images = images.masked_fill(mask & (drawn(images, len(images), 1, 1, 1) < augment.erase), 0.0)
        mixup, cutmix = augment.mixup, augment.cutmix
        if not mixup.probability and not cutmix.probability:
            return images, targets
        draw = drawn(images, len(images), 1, 1, 1)
        outside = ~rectangles(images, 1 - _beta(images, cutmix.alpha))
        share = _beta(images, mixup.alpha)[:, None, None, None]
        share = torch.where(draw < cutmix.probability + mixup.probability, share, 1.0)
        weight = torch.where(draw < cutmix.probability, outside, share)  # of the own image, by pixel
        other = torch.randperm(len(images), device=images.device)
        share, weight = weight.mean((1, 2, 3)).unsqueeze(1), weight.to(images.dtype)
        images = images * weight + images[other] * (1 - weight)
        hot = (targets if targets.ndim == 2 else F.one_hot(targets, self.num_classes)).float()
        return images, hot * share + hot[other] * (1 - share)


def drawn(images: Tensor, *shape: int) -> Tensor:
    """Returns random numbers from 0 to 1, in float32 also for images in half precision, which has few."""
    return torch.rand(shape, device=images.device, dtype=torch.float32)


def patches(images: Tensor) -> Tensor:
    """Returns a mask `(N, 1, H, W)` with a rectangle inside each image, as torchvision's RandomErasing draws
    that of Zhong et al. 2017: 0.02 to 0.33 of the area, and height to width from 0.3 to 3.3, log-uniform."""
    n, _, height, width = images.shape
    area = height * width * (0.02 + 0.31 * drawn(images, n, 1))
    ratio = torch.exp(math.log(0.3) + math.log(3.3 / 0.3) * drawn(images, n, 1))

    def inside(length: int, side: Tensor) -> Tensor:
        side = side.round().clamp(max=length)
        start = (drawn(images, n, 1) * (length - side + 1)).floor()
        place = torch.arange(length, device=images.device)
        return (place >= start) & (place < start + side)

    rows, columns = inside(height, (area * ratio).sqrt()), inside(width, (area / ratio).sqrt())
    return rows[:, None, :, None] & columns[:, None, None, :]


def rectangles(images: Tensor, area: Tensor) -> Tensor:
    """Returns a mask `(N, 1, H, W)` with a random rectangle of the share `area (N,)` in each image. Its
    centre is anywhere, so that a part can lie outside (as in CutMix, Yun et al. 2019)."""
    n, _, height, width = images.shape

    def inside(length: int) -> Tensor:
        centre = drawn(images, n, 1) * length
        place = torch.arange(0.5, length, device=images.device, dtype=torch.float32)
        return (place - centre).abs() <= area.sqrt()[:, None] * length / 2

    return inside(height)[:, None, :, None] & inside(width)[:, None, None, :]


def _beta(images: Tensor, alpha: float) -> Tensor:
    concentration = torch.full((len(images),), alpha, device=images.device, dtype=torch.float32)
    return torch.distributions.Beta(concentration, concentration, validate_args=False).sample()


def changes_images(batch: BatchAugment) -> bool:
    """Says whether training sees other images than evaluation."""
    augment = batch.augment
    mixed = augment.mixup.probability + augment.cutmix.probability
    return augment.crop != "none" or augment.policy is not None or batch.flip + augment.erase + mixed > 0
