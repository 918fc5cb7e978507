"""What the rest of the template asks the data."""

from dataclasses import dataclass

from imgcls.errors import UserError


@dataclass(frozen=True)
class DataSpec:
    """The facts of a data set that networks, augmentation and evaluation depend on.

    `mean` and `std` are for pixels in [0, 1], one number a channel. Evaluation resizes the short side to
    `image_size / crop_ratio` pixels and cuts the square of `image_size` from the centre.
    """

    class_names: tuple[str, ...]
    channels: int
    image_size: int  # side of the square a network sees, in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_ratio: float = 1.0
    mirror: bool = True  # a mirrored picture is still of its class

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(f"the data has {len(self.class_names)} class; expected two or more")
        if repeated := [name for name in self.class_names if self.class_names.count(name) > 1]:
            raise UserError(f"the data has two classes called {repeated[0]!r}; expected different names")
        if not 0 < self.crop_ratio <= 1 or self.image_size < 1 or min(self.std) <= 0:
            raise UserError("data: expected crop_ratio above 0 and at most 1, image_size of 1 or more, std above 0")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
