"""Augmentation of a batch, on the device that trains, with draws of their own for each sample: torchvision's
transforms draw once for a whole batch."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.augment.settings import Augment, calls_of
from imgcls.spec import DataSpec


class BatchAugment(nn.Module):
    """The part of an `Augment` that works on a batch, where the batch is."""

    def __init__(self, augment: Augment, spec: DataSpec) -> None:
        super().__init__()
        self.augment = augment
        self.flip = augment.flip if augment.flip is not None else 0.5 * spec.mirror
        self.padding = augment.padding if augment.crop_of(spec) == "padded" else 0.0
        self.num_classes, self.spec = spec.num_classes, spec

    def pixels(self, images: Tensor) -> Tensor:
        """Crops and mirrors `images (N, C, H, W) uint8`, or each view of `(N, V, C, H, W)`, in one gather."""
        if images.ndim == 5:
            return self.pixels(images.flatten(0, 1)).unflatten(0, images.shape[:2])
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
        """Returns images (or views) in uint8 as training gets them, in uint8 again, and their targets."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.spec.mean, self.spec.std))
        mixed, targets = self.mix((self.pixels(images) / 255 - mean) / std, targets)
        return ((mixed * std + mean) * 255).round().clamp(0, 255).byte(), targets

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Erases and mixes normalised `images (N, C, H, W)`; mixed targets are shares `(N, K)`. Of views
        `(N, V, C, H, W)` each is erased by itself, and none is mixed."""
        augment = self.augment
        if images.ndim == 5:
            assert not augment.mixed
            erased, _ = self.mix(images.flatten(0, 1), targets)
            return erased.unflatten(0, images.shape[:2]), targets
        if augment.erase:
            mask = patches(images)
            images = images.masked_fill(mask & (drawn(images, len(images), 1, 1, 1) < augment.erase), 0.0)
        mixup, cutmix = augment.mixup, augment.cutmix
        if not augment.mixed:
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
    own = calls_of(augment.image, "image")
    return augment.crop != "none" or bool(own) or batch.flip + augment.erase + augment.mixed > 0
