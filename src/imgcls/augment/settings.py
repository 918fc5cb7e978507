"""Augment: the settings of augmentation, conf/augment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PositiveFloat

from imgcls.config import check as configs
from imgcls.config.build import build, recipe
from imgcls.config.training import Node
from imgcls.config.training import Part as Call
from imgcls.config.words import renamed
from imgcls.errors import UserError
from imgcls.spec import DataSpec, Part, Share


def rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the smaller number first")
    return pair


Parts = Annotated[tuple[Part, Part], AfterValidator(rising)]
Ratios = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(rising)]
# In the order in which they are applied; null takes one out, or all.
Calls = Annotated[dict[str, Call] | list[Call], BeforeValidator(lambda calls: {} if calls is None else calls)]
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
        crop: "padded": a random crop of the image padded by `padding` (a share of its side), with black or
            with its own mirror image (`padding_with`); "resized": a random area and ratio (Szegedy et al.
            2014); "auto": the first for small images, else the second;
            "own": an entry of `image` makes it, and gets images of the size in which they are stored.
        scale, ratio: of the "resized" crop: share of the area; width to height, times that of the image size.
        flip: probability of mirroring; null: a half where `DataSpec.mirror` says that classes stay.
        image: transforms of one image, in the workers, by name or in a list (`augment/image.py`).
        batch: transforms of a batch, on the device, by name or in a list (`augment/batch.py`).
        erase: probability of erasing a rectangle (Zhong et al. 2017), by zeros, which are the mean, or by
            noise with mean 0 and deviation 1 (`erase_with`).
        mixup, cutmix: Zhang et al. 2017, Yun et al. 2019; a sample gets one of them at the most.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    crop: Literal["none", "padded", "resized", "auto", "own"] = "none"
    padding: Share = 0.125
    padding_with: Literal["zero", "reflect"] = "zero"
    scale: Parts = (0.08, 1.0)
    ratio: Ratios = (3 / 4, 4 / 3)
    flip: Share | None = 0.0
    image: Calls = field(default_factory=dict)
    batch: Calls = field(default_factory=dict)
    erase: Share = 0.0
    erase_with: Literal["zero", "noise"] = "zero"
    mixup: Mix = field(default_factory=Mix)
    cutmix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        if self.mixed > 1:
            given = f"augment.mixup.probability + cutmix.probability={self.mixed}"
            raise UserError(f"{given}: expected a number from 0 to 1")

    @classmethod
    def read(cls, node: Mapping[str, Any]) -> "Augment":
        """Returns the settings of conf/augment. Raises UserError: a key or a value does not fit."""
        for key in node:
            if advice := renamed(f"augment.{key}"):
                raise UserError(f"augment.{key}: there is no such key; {advice}")
        settings: Augment = configs.typed(dict(node), cls, "augment")
        return settings

    @property
    def mixed(self) -> float:
        """The share of images that are mixed."""
        return self.mixup.probability + self.cutmix.probability

    def crop_of(self, spec: DataSpec) -> str:
        """Returns the kind of crop for this data, "auto" decided."""
        height, width = spec.for_training.size
        return self.crop if self.crop != "auto" else "padded" if height * width <= SMALL**2 else "resized"


def calls_of(calls: Calls, where: str) -> dict[str, Node]:
    """Returns the calls that are not switched off, by their places in the config, in order."""
    named = calls.items() if isinstance(calls, dict) else enumerate(calls)
    return {f"{where}.{name}": node for name, node in named if node}


def built(node: Node, where: str) -> Any:
    """Returns what an entry names: an object that was made, or with `_partial_` the function itself. Raises
    UserError: it can't be made, or called."""
    made = recipe(node, where) if node.get("_partial_") else build(node, where)
    if not callable(made):
        raise UserError(f"{where}._target_={node['_target_']}: made a {type(made).__name__}, no transform")
    return made
