"""Preparation for evaluation beside timm's and torchvision's, of squares and rectangles."""

from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from imgcls.data.loading.preparation import Proportional, evaluation_transform
from imgcls.spec import DataSpec

MODES = {"crop": "center", "squash": "squash", "pad": "border"}


def spec_of(size: Any, fit: Any = "crop", ratio: float = 0.8) -> DataSpec:
    return DataSpec(("a", "b"), 3, size, [0.0], [1.0], crop_ratio=ratio, fit=fit)


def picture(height: int, width: int) -> torch.Tensor:
    """A smooth picture: resizing by one pixel more or less changes little."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [((rows * a + columns * b) / 24).sin() for a, b in ((1, 0), (0, 1), (1, 1))]
    return (127 + 120 * torch.stack(waves)).round().byte()


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (70, 140), (64, 64)])
@pytest.mark.parametrize("size", [(24, 40), (40, 24), (32, 32)])
def test_as_timm_does(fit: Any, shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = picture(*shape)
    ours = evaluation_transform(spec_of(size, fit))(image)
    how: dict[str, Any] = {"crop_pct": 0.8, "crop_mode": MODES[fit], "interpolation": "bilinear"}
    timms = create_transform((3, *size), mean=(0.0,) * 3, std=(1.0,) * 3, **how)
    expected = timms(Image.fromarray(image.permute(1, 2, 0).numpy())) * 255
    assert ours.shape == expected.shape == (3, *size)
    assert (ours - expected).abs().mean() < 8  # sides are rounded by half a pixel another way
    assert (ours.flip(-1) - expected).abs().mean() > 16


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (33, 100), (50, 50), (7, 300)])
def test_a_square_is_as_torchvision_makes_it(shape: tuple[int, int]) -> None:
    image, mode = picture(*shape), v2.InterpolationMode.BILINEAR
    for covers, resize in ((True, v2.Resize(24, mode)), (False, v2.Resize(None, mode, max_size=24))):
        if covers or min(shape) * 24 >= max(shape):
            assert torch.equal(Proportional((24, 24), mode, covers)(image), resize(image))


def test_a_thin_picture_keeps_a_pixel() -> None:
    thin = torch.full((3, 2, 300), 255, dtype=torch.uint8)
    shown = evaluation_transform(spec_of((20, 24), "pad", 1.0))(thin)
    assert shown.shape == (3, 20, 24) and (shown == 255).sum() == 3 * 24


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_five_crops(fit: Any) -> None:
    spec = spec_of((24, 40), fit)
    image = picture(90, 70)
    crops = evaluation_transform(spec, crops=True)(image)
    assert crops.shape == (5, 3, 24, 40)
    assert torch.equal(crops[0], evaluation_transform(spec)(image))  # the centre is what is tested without
    whole = evaluation_transform(spec)  # its last step is the cut
    for step in whole.transforms[:-1]:
        image = step(image)
    corners = v2.functional.five_crop(image, [24, 40])[:4]
    assert all(torch.equal(crop, corner) for crop, corner in zip(crops[1:], corners, strict=True))
