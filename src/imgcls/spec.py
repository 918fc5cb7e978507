"""DataSpec: the facts of a data set that the rest of the template depends on."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat, PositiveInt
from pydantic_core import PydanticCustomError

from imgcls.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, le=1)]  # a share that is not nothing
LARGEST = 2**14  # pixels of a side; more is a mistake, and would fill the memory


def checked_size(size: object) -> int | tuple[int, int]:
    """Returns a size as it is written: of a square one number. Raises PydanticCustomError: it is no size."""
    numbers: list[Any] = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(numbers) != 2 or not all(type(side) is int and side >= 1 for side in numbers):
        raise PydanticCustomError("image_size", "expected 1 pixel or more, or [height,width]")
    height, width = numbers
    return height if height == width else (height, width)


# The side of a square, or height and width, in pixels.
ImageSize = Annotated[int | tuple[int, int], BeforeValidator(checked_size)]


def sides(size: ImageSize) -> tuple[int, int]:
    """Returns height and width in pixels."""
    return (size, size) if isinstance(size, int) else size


def as_word(size: ImageSize) -> str:
    """Returns a size as the command line takes it."""
    return str(size) if isinstance(size, int) else f"[{size[0]},{size[1]}]"


@dataclass(frozen=True)
class DataSpec:
    """The facts of a data set that networks, augmentation and evaluation depend on.

    `mean` and `std` are for pixels in [0, 1], one number a channel: one for all is repeated, and those of
    colours are averaged for grey. Evaluation resizes an image as `fit` says, and cuts `image_size` out of its
    centre: with "crop" it keeps its proportions and covers `resize`; with "squash" it gets just that height
    and width; with "pad" it keeps its proportions, fits into `resize`, and black is added.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # where it is read from a file

    class_names: Sequence[str]  # none where targets are measures
    channels: PositiveInt
    image_size: ImageSize  # of the images that a network sees
    mean: Sequence[FiniteFloat]
    std: Sequence[FiniteFloat]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop_ratio: float = 1.0
    fit: Literal["crop", "squash", "pad"] = "crop"
    mirror: bool = True  # a mirrored picture is still of its class
    bits: Annotated[int, Field(ge=1, le=32)] | None = (
        None  # of files of more than 8 bits, those that are used (see `decode`)
    )
    # In training, where it is another (FixRes, Touvron et al. 2019, arXiv:1906.06423).
    train_size: ImageSize | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))  # a config gives lists
        object.__setattr__(self, "mean", per_channel(self.mean, self.channels))
        object.__setattr__(self, "std", per_channel(self.std, self.channels))
        size = checked_size(self.image_size)
        train_size = size if self.train_size is None else checked_size(self.train_size)
        object.__setattr__(self, "image_size", size)
        object.__setattr__(self, "train_size", None if train_size == size else train_size)
        if len(self.class_names) == 1:
            raise UserError("the data has 1 class; expected two or more, or none where targets are measures")
        if repeated := [name for name, count in Counter(self.class_names).items() if count > 1]:
            raise UserError(f"the data has two classes called {repeated[0]!r}; expected different names")
        largest = max(*sides(size), *sides(train_size))
        if not 0 < self.crop_ratio <= 1 or largest / self.crop_ratio >= LARGEST + 1 or min(self.std) <= 0:
            given = f"crop_ratio={self.crop_ratio}, image_size={as_word(size)}, std={list(self.std)}"
            given += "" if train_size == size else f", train_size={as_word(train_size)}"
            ratio = "expected a ratio above 0 and at most 1, std above 0"
            wanted = f"a size of 1 or more that gives at most {LARGEST} pixels when divided by the ratio"
            raise UserError(f"data: {given}: {ratio}, and {wanted}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that a network sees, in pixels."""
        return sides(self.image_size)

    @property
    def resize(self) -> tuple[int, int]:
        """Height and width before the centre is cut, in whole pixels as timm has it."""
        height, width = (math.floor(side / self.crop_ratio) for side in self.size)
        return height, width

    @property
    def for_training(self) -> Self:
        """The facts with the size of training images as theirs."""
        return replace(self, image_size=self.train_size or self.image_size, train_size=None)

    def at_most(self, pixels: int) -> Self:
        """Returns the facts with a size whose shorter side has no more than so many pixels."""
        share = min(pixels / min(self.size), 1.0)
        height, width = (max(round(share * side), 1) for side in self.size)
        return replace(self, image_size=(height, width))

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
