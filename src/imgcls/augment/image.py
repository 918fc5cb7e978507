"""Augment: the settings of augmentation, and the transform of one image, which the workers apply."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from imgcls.config.check import build
from imgcls.errors import UserError
from imgcls.spec import DataSpec


def rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the smaller number first")
    return pair


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(gt=0, le=1)]
Parts = Annotated[tuple[Part, Part], AfterValidator(rising)]
Ratios = Annotated[tuple[Positive, Positive], AfterValidator(rising)]
SMALL = 64  # up to this image size, "auto" crops from a padded image instead of resizing


@dataclass(frozen=True)
class Mix:
    """Mixing of two images with a weight from Beta(alpha, alpha), for each sample with this probability."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    alpha: Positive = 1.0
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
            total = f"augment.mixup.probability + cutmix.probability={mixed}"
            raise UserError(f"{total}: expected a number from 0 to 1")

    def crop_of(self, spec: DataSpec) -> str:
        """Returns the kind of crop for this data, "auto" decided."""
        return self.crop if self.crop != "auto" else "padded" if spec.image_size <= SMALL else "resized"


def worker_transform(
    augment: Augment, spec: DataSpec, otherwise: nn.Module | None = None
) -> nn.Module | None:
    """Returns a worker's transform of one training image: a resized crop, else `otherwise`; then the
    policy."""
    first = otherwise
    if augment.crop_of(spec) == "resized":
        size, mode = spec.image_size, InterpolationMode(spec.interpolation)
        first = v2.RandomResizedCrop(size, augment.scale, augment.ratio, mode, antialias=True)
    policy = None if augment.policy is None else build(augment.policy, "augment.policy", nn.Module)
    if policy is None and first is otherwise:
        return otherwise
    return v2.Compose([step for step in (first, policy) if step is not None])


class ThreeAugment(v2.Compose):
    """3-Augment (DeiT III, Touvron et al. 2022): grey, solarised or blurred, then a slight colour jitter."""

    def __init__(self, jitter: float = 0.3) -> None:
        one = [v2.RandomGrayscale(p=1.0), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(5, (0.1, 2.0))]
        super().__init__([v2.RandomChoice(one), v2.ColorJitter(jitter, jitter, jitter)])
