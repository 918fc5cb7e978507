"""Decoding on the device. Without a GPU the processor takes its place: all but nvJPEG is the same code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.packs import packed
from support.pictures import write_picture

from imgcls.augment.settings import Augment
from imgcls.data import imagefolder
from imgcls.data.batch import Batch
from imgcls.data.imagefolder import ImageFolder, PictureModule
from imgcls.data.module import Loader
from imgcls.data.packed import PackedData
from imgcls.errors import UnreadableImage, UserError

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
FLIP = Augment(image={"flip": {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"}})


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder, "check_device_decoder", lambda augment: None)
    monkeypatch.setattr(imagefolder, "training_device", lambda trainer: torch.device("cpu"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of JPEGs as cameras and scanners write them, and of other formats."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(7):
            write_picture(tmp_path / "set" / name / f"{i}.jpg", seed=10 * label + i, size=(40 + i, 32))
        write_picture(tmp_path / "set" / name / "grey.jpg", seed=label, mode="L")
        write_picture(tmp_path / "set" / name / "inks.jpg", seed=label, mode="CMYK")
        write_picture(tmp_path / "set" / name / "other.png", seed=label)
        turned = Image.open(write_picture(tmp_path / "set" / name / "turned.jpg", seed=label, size=(50, 30)))
        exif = Image.Exif()
        exif[0x0112] = 6
        turned.save(tmp_path / "set" / name / "turned.jpg", exif=exif, progressive=True)
    return tmp_path / "set"


def ready(kind: type[PictureModule], root: Path, decode: str, **given: Any) -> PictureModule:
    common: dict[str, Any] = {"image_size": 24, "batch_size": 4, "num_workers": 0, "augment": FLIP}
    data = kind(**{"root": str(root), "decode": decode, **common, **given})
    data.setup()
    return data


def epoch(data: PictureModule, number: int, state: dict[str, int] | None = None) -> list[Batch]:
    loader = data.train_dataloader()
    assert isinstance(loader, Loader)
    loader.sampler.set_epoch(number)
    if state is not None:
        loader.load_state_dict(state)
    return list(loader)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        for part, wanted in zip(one, other, strict=True):
            assert torch.equal(part, wanted)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_those_of_the_workers(root: Path, on_cpu: None, workers: int, channels: int) -> None:
    given = {"num_workers": workers, "channels": channels}
    usual, here = (ready(ImageFolder, root, decode, **given) for decode in ("cpu", "cuda"))
    for number in (0, 1):
        assert_same(epoch(here, number), epoch(usual, number))
    assert_same(epoch(here, 1, {"samples": 8}), epoch(usual, 1)[2:])
    found, expected = (list(data.evaluation_loader("test")) for data in (here, usual))
    assert_same([*found, *found], [*expected, *expected])


def test_the_batches_of_a_pack_are_those_of_the_workers(root: Path, tmp_path: Path, on_cpu: None) -> None:
    out = packed(root, tmp_path / "pack", format="jpeg")
    usual, here = (ready(PackedData, out, decode) for decode in ("cpu", "cuda"))
    assert_same(epoch(here, 0), epoch(usual, 0))


def test_images_that_cannot_be_read_do_what_they_do_in_workers(
    root: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = (root / "cat" / "0.jpg").read_bytes()
    (root / "cat" / "1.jpg").write_bytes(whole[:300])
    (root / "cat" / "2.jpg").write_bytes(whole[:300] + b"\xff\xd9")
    (root / "dog" / "3.jpg").write_bytes(b"")
    skip = {"on_error": "skip", "max_errors": 1.0}
    usual, here = (ready(ImageFolder, root, decode, **skip) for decode in ("cpu", "cuda"))
    expected = epoch(usual, 0)
    Path("unreadable.csv").rename("usual.csv")
    assert_same(epoch(here, 0), expected)
    lines = [sorted(Path(name).read_text().splitlines()) for name in ("unreadable.csv", "usual.csv")]
    assert lines[0] == lines[1] and len(lines[0]) > 2
    with pytest.raises(UnreadableImage, match=r"data\.on_error=skip leaves out such images"):
        epoch(ready(ImageFolder, root, "cuda"), 0)


def refused(kind: type[PictureModule], root: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        ready(kind, root, "cuda", **given)
    assert "\n" not in str(caught.value) and "data.decode=cpu" in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_a_line_says_so(root: Path) -> None:
    assert "there is no CUDA device here" in refused(ImageFolder, root)


def test_what_needs_the_processor_is_refused(root: Path) -> None:
    own = Augment(image={"mine": {"_target_": "builtins.list"}})
    assert "augment.image.mine=builtins.list works on the processor" in refused(
        ImageFolder, root, augment=own
    )


def test_packed_pixels_are_refused(root: Path, tmp_path: Path, on_cpu: None) -> None:
    assert "was packed as pixels" in refused(PackedData, packed(root, tmp_path / "pack", size=24))


def test_a_training_elsewhere_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder, "check_device_decoder", lambda augment: None)
    data = ready(ImageFolder, root, "cuda")
    data.trainer = type("T", (), {"strategy": type("S", (), {"root_device": torch.device("cpu")})})()
    with pytest.raises(UserError, match="training is on cpu"):
        data.train_dataloader()


@CUDA
def test_the_gpu_decodes_nearly_the_same(root: Path) -> None:
    usual, here = (ready(ImageFolder, root, decode) for decode in ("cpu", "cuda"))
    for one, other in zip(epoch(here, 0), epoch(usual, 0), strict=True):
        assert one.images.is_cuda and torch.equal(one.indices, other.indices)
        assert (one.images.cpu().float() - other.images.float()).abs().mean() < 3
