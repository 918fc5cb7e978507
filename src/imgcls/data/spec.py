"""What the rest of the template asks the data."""

from dataclasses import dataclass


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

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
