"""Blurred, dark, bright and odd-sized pictures are found, and shown; a set's own manner is no fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.pages import elements
from torchvision.transforms.v2 import functional as F

from imgcls.tools.inspect.looks import odd_looks, sharpness
from imgcls.tools.inspect.scan import measure

QUICK = ("data.image_size=32", "data.num_workers=0", "hydra.run.dir=seen", "samples=2")


def scene(seed: int, size: int = 160) -> torch.Tensor:
    """Returns an image `(3, size, size) uint8` with details of all sizes, as photographs have."""
    generator, image = torch.Generator().manual_seed(seed), torch.zeros(1, 3, size, size)
    for side in (5, 10, 20, 40, 80, 160):
        noise = torch.randn(1, 3, side, side, generator=generator)
        image += F.resize(noise, [size, size]) * side**-0.5
    return (128 + 100 * image[0]).clamp(0, 255).byte()


def scenes(count: int, start: int = 0) -> list[torch.Tensor]:
    return [scene(start + i) for i in range(count)]


def looks_of(images: list[torch.Tensor]) -> dict[str, list[int]]:
    table = pd.DataFrame([measure(image) for image in images]).assign(
        file=[str(i) for i in range(len(images))]
    )
    return {name: sorted(int(row["file"]) for row in rows) for name, rows in odd_looks(table).items()}


def blurred(image: torch.Tensor, sigma: float = 4.0) -> torch.Tensor:
    return F.gaussian_blur(image, [33, 33], [sigma, sigma])


PLANTED = {
    "blurred": lambda image: blurred(image),
    "dark": lambda image: image // 8,
    "bright": lambda image: 235 + image // 13,
    "of an odd size": lambda image: image[:, :40],
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_looks(name: str) -> None:
    images = scenes(60)
    for i in (7, 31, 44):
        images[i] = PLANTED[name](images[i])
    assert looks_of(images) == {name: [7, 31, 44]}


@pytest.mark.parametrize("name", PLANTED)
def test_the_manner_of_a_set(name: str) -> None:
    """Where all, or every second picture is so, none is listed."""
    for step in (1, 2):
        changed = [PLANTED[name](image) if i % step == 0 else image for i, image in enumerate(scenes(40))]
        assert name not in looks_of(changed)


def test_sizes_far_from_the_others() -> None:
    images = scenes(40)
    images[3], images[8] = images[3][:, :30, :30], F.resize(images[8], [900, 900])
    assert looks_of(images)["of an odd size"] == [3, 8]


def test_sharpness() -> None:
    """It falls with blur, and does not change with brightness and contrast; a blank picture has none."""
    image = scene(0)
    values = [sharpness(blurred(image, sigma)) for sigma in (0.5, 1, 2, 4, 8, 16)]
    assert values[:4] == sorted(values[:4], reverse=True) and values[0] > 3 * max(values[2:])
    assert sharpness(image // 2 + 64) == pytest.approx(sharpness(image), rel=0.05)
    for blank in (
        torch.full((3, 20, 20), 7),
        torch.zeros(3, 1, 1),
        torch.zeros(1, 2, 300),
        torch.zeros(2, 7, 3),
    ):
        assert np.isnan(sharpness(blank.byte()))


def test_few_and_blank_pictures() -> None:
    assert looks_of(scenes(3)) == {}
    assert looks_of([torch.full((3, 30, 30), 99, dtype=torch.uint8)] * 30) == {}


def test_they_are_listed_and_shown(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    for i, image in enumerate(scenes(60)):
        if i in (0, 1):
            image = blurred(image)
        if i == 2:
            image = image // 8
        path = Path("set") / "ab"[i % 2] / f"<i>{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    here(
        "inspect",
        "data.root=set",
        "data.image_size=32",
        "data.num_workers=0",
        "hydra.run.dir=seen",
        "samples=2",
    )
    found, printed = json.loads(Path("seen/inspect.json").read_text())["looks"], capsys.readouterr().out
    assert {name: {row["file"] for row in rows} for name, rows in found.items()} == {
        "blurred": {"a/<i>0.png", "b/<i>1.png"},
        "dark": {"a/<i>2.png"},
    }
    assert "pictures that are blurred (2)" in printed and "a/<i>2.png: mean brightness 0.0" in printed
    page = Path("seen/index.html").read_text()
    assert page.count("<h2>Pictures that are ") == 2 and "a/&lt;i&gt;2.png" in page and "<i>" not in page
    shown = [dict(attributes)["src"] for tag, attributes in elements(page) if tag == "img"]
    assert sum(str(source).startswith("data:image/png") for source in shown) == 3 + 2  # and the samples
    assert len(Path("seen/exclude.txt").read_text().splitlines()) == 1  # a person decides


def test_copies_with_two_labels(here: Callable[..., None]) -> None:
    """Both are proposed to be left out, but of a picture of the test split its copies alone."""
    for i, image in enumerate(scenes(12)):
        for split in ("train", "test"):
            path = Path("set") / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shifted = image if split == "train" else image.roll(31, 1)
            Image.fromarray(shifted.permute(1, 2, 0).numpy()).save(path)
    shutil.copy("set/train/a/0.png", "set/train/b/again.png")
    shutil.copy("set/test/a/2.png", "set/train/b/leak.png")
    here(
        "inspect",
        "data.root=set",
        "data.image_size=32",
        "data.num_workers=0",
        "hydra.run.dir=seen",
        "samples=2",
    )
    assert Path("seen/exclude.txt").read_text().splitlines()[1:] == [
        "train/b/leak.png\t# the same picture as test/a/2.png, which has the label a",
        "train/a/0.png\t# the same picture as train/b/again.png, which has the label b",
        "train/b/again.png\t# the same picture as train/a/0.png, which has the label a",
    ]
