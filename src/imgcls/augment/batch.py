"""Augmentation of a batch, on the device that trains: our crop and mirror, the entries of `augment.batch` in
their order, our erasing and mixing. Ours have draws of their own for each sample: torchvision's transforms
draw once for a whole batch.

An entry is anything that is called with normalised images `(N, C, H, W)` and targets and returns both, or
with images alone. It gets the targets where it has two parameters without a default, or takes any number.
What it draws from the generators of torch, numpy and Python is a function of seed, epoch and step. Of views
`(N, V, C, H, W)` it gets each as an image, or, with targets, all as they are.
"""

import copy
import inspect
import math
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.augment.settings import Augment, built, calls_of
from imgcls.config.check import locate, parameters
from imgcls.config.training import Node
from imgcls.errors import UserError
from imgcls.spec import DataSpec


class BatchEntry(nn.Module):
    """A transform that the config names. The buffers of a module are saved with the task."""

    def __init__(self, node: Node, where: str, num_classes: int) -> None:
        super().__init__()
        self.where, self.num_classes = f"{where}: {node['_target_']}", num_classes
        if "num_classes" in parameters(locate(node["_target_"], f"{where}._target_")) and num_classes:
            node = {"num_classes": num_classes, **node}
        self.call = built(node, where)
        if isinstance(self.call, nn.Module):
            self.call.requires_grad_(False)  # the optimizer knows the network alone
        function = self.call.forward if isinstance(self.call, nn.Module) else self.call
        given = list(inspect.signature(function).parameters.values())
        self.open_ended = any(p.kind is p.VAR_POSITIONAL for p in given)
        positional = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.takes_targets = self.open_ended or sum(p.default is p.empty for p in positional) > 1

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found, shares = self.applied(self.call, images, targets)
        if len(found) != len(images) or len(shares) != len(images):  # shapes are no read from the device
            raise self.refused("images", images, found)
        return found, shares

    def applied(self, call: Any, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.takes_targets:
            images, targets = call(images, targets)
        elif images.ndim == 5:  # each view is an image
            images = call(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        else:
            images = call(images)
        return images, targets

    def tried(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what a copy of the transform makes of a batch; one that takes any number of arguments and
        refuses the targets will get none. Raises UserError: it fails, or returns other shapes."""
        failures = []
        for takes_targets in (True, False) if self.open_ended else (self.takes_targets,):
            self.takes_targets = takes_targets
            words = "images and targets" if takes_targets else "images"
            try:
                found, shares = self.applied(copy.deepcopy(self.call), images.clone(), targets.clone())
                if not (isinstance(found, Tensor) and isinstance(shares, Tensor)):
                    raise TypeError(f"it returned {type(found).__name__}")
                break
            except Exception as error:
                failures.append(f"{words}: {' '.join(str(error).split())[:120] or type(error).__name__}")
        else:
            raise UserError(f"{self.where} can't be called with a batch ({'; '.join(failures)})")
        if found.shape != images.shape or found.dtype != images.dtype:
            raise self.refused("images", images, found)
        same = shares.shape == targets.shape and shares.dtype == targets.dtype
        mixed = shares.shape == (len(targets), self.num_classes) and shares.is_floating_point()
        classes = targets.ndim == 1 and not targets.is_floating_point()
        beyond = same and classes and not 0 <= int(shares.min()) <= int(shares.max()) < self.num_classes
        if beyond or not (same or mixed):
            raise self.refused("targets", targets, shares)
        return found, shares

    def refused(self, words: str, given: Tensor, found: Tensor) -> UserError:
        shapes = [f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}" for one in (given, found)]
        shares = f", or shares (N, {self.num_classes})" if words == "targets" else ""
        return UserError(f"{self.where} returned {words} {shapes[1]} for {shapes[0]}; expected alike{shares}")


class BatchAugment(nn.Module):
    """The part of an `Augment` that works on a batch, where the batch is."""

    def __init__(self, augment: Augment, spec: DataSpec) -> None:
        super().__init__()
        self.augment = augment
        self.flip = augment.flip if augment.flip is not None else 0.5 * spec.mirror
        self.padding = augment.padding if augment.crop_of(spec) == "padded" else 0.0
        self.num_classes, self.spec = spec.num_classes, spec
        calls = calls_of(augment.batch, "augment.batch")
        self.entries = nn.ModuleList(BatchEntry(node, at, spec.num_classes) for at, node in calls.items())

    def check(self, views: int | None, targets: Tensor) -> None:
        """Tries the entries on made images, `views` of each, with targets `(N, …)` of the data; what the run
        draws stays as it is. Raises UserError as `BatchEntry.tried`; or views would be mixed."""
        if views and self.augment.mixed:
            given = f"augment.image makes {views} views of an image"
            raise UserError(f"{given}, which can't be mixed; leave out augment.mixup and augment.cutmix")
        if not self.entries:
            return
        size = (self.spec.channels, *self.spec.for_training.size)
        with isolate_rng(include_cuda=False), torch.no_grad():
            torch.manual_seed(0)
            images = torch.randn(len(targets), *([views] if views else []), *size)
            for entry in self.entries:
                images, targets = entry.tried(images, targets)  # type: ignore[operator]

    def pixels(self, images: Tensor) -> Tensor:
        """Crops and mirrors `images (N, C, H, W) uint8`, or each view of `(N, V, C, H, W)`, in one gather."""
        if images.ndim == 5:
            return self.pixels(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        n, _, height, width = images.shape
        device, pads = images.device, [round(self.padding * side) for side in (height, width)]
        if not any(pads) and not self.flip:
            return images
        rows = torch.arange(height, device=device).expand(n, height)
        columns = torch.arange(width, device=device).expand(n, width)
        if self.flip:
            columns = torch.where(drawn(images, n, 1) < self.flip, width - 1 - columns, columns)
        if any(pads):
            down, across = pads
            mode = "reflect" if self.augment.padding_with == "reflect" else "constant"
            images = F.pad(images, (across, across, down, down), mode)
            rows = rows + torch.randint(0, 2 * down + 1, (n, 1), device=device)
            columns = columns + torch.randint(0, 2 * across + 1, (n, 1), device=device)
        sample = torch.arange(n, device=device)[:, None, None]
        return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def shown(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (or views) in uint8 as training gets them, in uint8 again, and their targets."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.spec.mean, self.spec.std))
        self.check(images.shape[1] if images.ndim == 5 else None, targets[:4])
        mixed, targets = self.mix(*self.own((self.pixels(images) / 255 - mean) / std, targets))
        return ((mixed * std + mean) * 255).round().clamp(0, 255).byte(), targets

    def own(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Applies the entries to normalised `images (N, C, H, W)` or `(N, V, C, H, W)`, and targets."""
        for entry in self.entries:
            images, targets = entry(images, targets)
        return images, targets

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
            mask = mask & (drawn(images, len(images), 1, 1, 1) < augment.erase)
            noise = (
                torch.randn_like(images) if augment.erase_with == "noise" else torch.zeros_like(images[:1])
            )
            images = torch.where(mask, noise, images)
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
    own = calls_of(augment.image, "image") | calls_of(augment.batch, "batch")
    resized = augment.crop != "none" or batch.spec.train_size is not None
    return resized or bool(own) or batch.flip + augment.erase + augment.mixed > 0
