"""RandAugment as timm has it, for images of Pillow. It draws from the generators of Python and numpy."""

from typing import Annotated, Any, Literal

from PIL.Image import Image, Resampling
from pydantic import Field
from timm.data.auto_augment import rand_augment_transform

Mean = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]


class TimmRandAugment:
    """RandAugment (Cubuk et al. 2019) on timm's scale, as DeiT and ResNet strikes back took it: the magnitude
    `m` is of 10, `mstd` its standard deviation, and `inc1` means that each operation is stronger with a
    larger one. torchvision's magnitude is of 30. Grey images stay grey.

    Args:
        size: side of the images in pixels: shifts reach 0.45 of it.
        mean: red, green and blue of what comes in from outside of the image, 0 to 1.
    """

    def __init__(
        self,
        config: str = "rand-m9-mstd0.5-inc1",
        size: Annotated[int, Field(ge=1)] = 224,
        mean: Mean = [0.485, 0.456, 0.406],  # noqa: B006
        interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    ) -> None:
        fill = tuple(min(255, round(255 * value)) for value in mean)
        how: dict[str, Any] = {"translate_const": int(size * 0.45), "img_mean": fill}
        how["interpolation"] = Resampling[interpolation.upper()]
        self.transform = rand_augment_transform(config, how)

    def __call__(self, picture: Image) -> Image:
        changed: Image = self.transform(picture.convert("RGB"))
        return changed.convert(picture.mode)
