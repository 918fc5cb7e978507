"""DataSpec: the facts of a data set that the rest of the template depends on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, FiniteFloat, PositiveInt

from imgcls.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, le=1)]  # a share that is not nothing
LARGEST = 2**14  # pixels of the short side; more is a mistake, and would fill the memory


@dataclass(frozen=True)
class DataSpec:
    """The facts of a data set that networks, augmentation and evaluation depend on.

    `mean` and `std` are for pixels in [0, 1], one number a channel: one for all is repeated, and those of
    colours are averaged for grey. Evaluation makes a square of `resize` pixels of an image as `fit` says, and
    cuts the square of `image_size` out of its centre: "crop" resizes the short side; "squash" both sides;
    "pad" the long side, and pads the short one with black.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # where it is read from a file

    class_names: Sequence[str]  # none where targets are measures
    channels: PositiveInt
    image_size: PositiveInt  # side of the square a network sees, in pixels
    mean: Sequence[FiniteFloat]
    std: Sequence[FiniteFloat]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop_ratio: float = 1.0
    fit: Literal["crop", "squash", "pad"] = "crop"
    mirror: bool = True  # a mirrored picture is still of its class
    bits: int | None = None  # of files of more than 8 bits, those that are used (see `decode`)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))  # a config gives lists
        object.__setattr__(self, "mean", per_channel(self.mean, self.channels))
        object.__setattr__(self, "std", per_channel(self.std, self.channels))
        if len(self.class_names) == 1:
            raise UserError("the data has 1 class; expected two or more, or none where targets are measures")
        if repeated := [name for name in self.class_names if self.class_names.count(name) > 1]:
            raise UserError(f"the data has two classes called {repeated[0]!r}; expected different names")
        if not 0 < self.crop_ratio <= 1 or not 1 <= self.resize <= LARGEST or min(self.std) <= 0:
            given = f"crop_ratio={self.crop_ratio}, image_size={self.image_size}, std={list(self.std)}"
            ratio = "expected a ratio above 0 and at most 1, std above 0"
            size = f"a size of 1 or more that gives at most {LARGEST} pixels when divided by the ratio"
            raise UserError(f"data: {given}: {ratio}, and {size}")

    @property
    def resize(self) -> int:
        """Pixels of the short side before the centre is cut, in whole pixels as timm has it."""
        return math.floor(self.image_size / self.crop_ratio)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def per_channel(numbers: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns one number a channel: repeated for grey statistics on colour, averaged for colour on grey."""
    if len(numbers) not in (1, channels) and (channels != 1 or not numbers):
        counts = f"{len(numbers)} numbers for {channels} channels"
        raise UserError(f"data.mean and data.std have {counts}; give one for each")
    mean = sum(numbers) / len(numbers)
    return tuple(numbers) if len(numbers) == channels else (mean,) * channels
