"""Every format and mode that `decode` promises, by its pixels; and files that are no image."""

import faulthandler
import multiprocessing
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imgcls.data.files import Files
from imgcls.data.loading.decode import decode, header
from imgcls.errors import UnreadableImage, UserError
from imgcls.spec import DataSpec

HEIGHT, WIDTH = 16, 24
RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)
LUMA = (0.299, 0.587, 0.114)


def halves(left: Any, right: Any) -> np.ndarray:
    """A picture of two colours, side by side."""
    shape = (HEIGHT, WIDTH, *np.shape(left))
    picture = np.empty(shape, np.uint8)
    picture[:, : WIDTH // 2], picture[:, WIDTH // 2 :] = left, right
    return picture


COLOUR = Image.fromarray(halves(RED, BLUE))
SWAPPED = Image.fromarray(halves(BLUE, RED))
GREY = Image.fromarray(halves(64, 192))
DEEP = Image.fromarray(halves(64, 192).astype(np.uint16) * 257)
BITS = Image.fromarray(halves(0, 255)).convert("1")


def with_alpha(image: Image.Image) -> Image.Image:
    """Adds an alpha channel that hides the upper half."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[: HEIGHT // 2] = 0
    image = image.copy()
    image.putalpha(Image.fromarray(alpha))
    return image


def seen(path: Path, channels: int) -> tuple[Any, Any]:
    """Decodes and returns the colours of both halves; fails where a half has more than one."""
    image = decode(str(path), channels)
    assert image.dtype == torch.uint8 and image.shape == (channels, HEIGHT, WIDTH)
    left, right = image[:, :, : WIDTH // 2 - 3], image[:, :, WIDTH // 2 + 3 :]
    for half in (left, right):
        assert (half.int() - half[:, :1, :1].int()).abs().max() <= 4
    return left[:, 0, 0].tolist(), right[:, 0, 0].tolist()


def expect(path: Path, left: Any, right: Any, tolerance: int) -> None:
    """Checks the file in colour and in grey; `left` and `right` are the picture's colours."""
    colours = [[c] * 3 if isinstance(c, int) else c for c in (left, right)]
    for got, colour in zip(seen(path, 3), colours, strict=True):
        assert got == pytest.approx(colour, abs=tolerance)
    for got, colour in zip(seen(path, 1), colours, strict=True):
        assert got == pytest.approx([float(np.dot(colour, LUMA))], abs=tolerance + 1)


@pytest.mark.parametrize(
    ("name", "image", "options", "tolerance"),
    [
        ("a.jpg", COLOUR, {"quality": 95, "subsampling": 0}, 3),
        ("a.JPEG", COLOUR, {"quality": 95, "subsampling": 0}, 3),
        ("cmyk.jpg", COLOUR.convert("CMYK"), {"quality": 95}, 3),
        ("progressive.jpg", COLOUR, {"quality": 95, "subsampling": 0, "progressive": True}, 3),
        ("rgb.png", COLOUR, {}, 0),
        ("rgba.png", with_alpha(COLOUR), {}, 0),
        ("palette.png", COLOUR.quantize(4), {}, 0),
        ("transparent.png", COLOUR.quantize(4), {"transparency": 0}, 0),
        ("animated.png", COLOUR, {"save_all": True, "append_images": [SWAPPED]}, 0),
        ("lossless.webp", COLOUR, {"lossless": True}, 0),
        ("lossy.webp", COLOUR, {"quality": 95}, 4),
        ("rgba.webp", with_alpha(COLOUR), {"lossless": True, "exact": True}, 0),
        ("animated.webp", COLOUR, {"save_all": True, "append_images": [SWAPPED], "lossless": True}, 0),
        ("single.gif", COLOUR, {}, 0),
        ("animated.gif", COLOUR, {"save_all": True, "append_images": [SWAPPED]}, 0),
        ("rgb.bmp", COLOUR, {}, 0),
        ("palette.bmp", COLOUR.quantize(4), {}, 0),
        ("rgb.tiff", COLOUR, {}, 0),
        ("lzw.tif", COLOUR, {"compression": "tiff_lzw"}, 0),
        ("rgba.tiff", with_alpha(COLOUR), {}, 0),
        ("cmyk.tiff", COLOUR.convert("CMYK"), {}, 0),
        ("pages.tiff", COLOUR, {"save_all": True, "append_images": [SWAPPED]}, 0),
        ("a.ppm", COLOUR, {}, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_colour_pictures(tmp_path: Path, name: str, image: Image.Image, options: Any, tolerance: int) -> None:
    image.save(tmp_path / name, **options)
    expect(tmp_path / name, RED, BLUE, tolerance)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.jpg", GREY),
        ("grey.png", GREY),
        ("alpha.png", with_alpha(GREY)),
        ("deep.png", DEEP),
        ("grey.webp", GREY),
        ("grey.gif", GREY),
        ("grey.bmp", GREY),
        ("grey.tiff", GREY),
        ("alpha.tiff", with_alpha(GREY)),
        ("deep.tiff", DEEP),
        ("wide.tiff", Image.fromarray(np.array(GREY).astype(np.int32))),
        ("real.tiff", Image.fromarray(np.array(GREY).astype(np.float32) / 255)),
        ("grey.pgm", GREY),
        ("deep.pgm", DEEP),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grey_pictures(tmp_path: Path, name: str, image: Image.Image) -> None:
    options = {"quality": 95} if name.endswith("jpg") else {"lossless": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    expect(tmp_path / name, 64, 192, 1)


ALL = np.linspace(0, 4095, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "wide.tiff", "real.tiff"])
def test_the_bits_that_are_used(tmp_path: Path, name: str) -> None:
    kind = {"wide.tiff": np.int32, "real.tiff": np.float32}.get(name, np.uint16)
    Image.fromarray(ALL.astype(kind)).save(tmp_path / name)
    image = decode(str(tmp_path / name), 1, bits=12)
    values = np.asarray(ALL.astype(kind), np.float64)
    assert np.abs(image[0].numpy() - values / 4095 * 255).max() <= 0.51
    assert (
        decode(str(tmp_path / name), 1, bits=11).float().mean() > 1.3 * image.float().mean()
    )  # 2047 is white


def test_the_type_decides_and_not_the_picture(tmp_path: Path) -> None:
    """A dark picture stays dark; what can't be meant so is refused."""
    for kind, white in ((np.uint16, 65535), (np.int32, 255), (np.float32, 1)):
        Image.fromarray(np.full((4, 4), white / 5, kind)).save(tmp_path / "a.tiff")
        assert decode(str(tmp_path / "a.tiff"), 1).unique().tolist() == [51]
    for kind, low, high in (
        (np.int32, 0, 4095),
        (np.int32, -5, 9),
        (np.float32, 0, 255),
        (np.float32, -1, 1),
    ):
        Image.fromarray(np.array([[low, high]], kind)).save(tmp_path / "a.tiff")
        with pytest.raises(
            UnreadableImage, match=f"are from {low} to {high}, not 0 to .*: data.bits says what is white"
        ):
            decode(str(tmp_path / "a.tiff"), 1)


def test_floats_with_gaps(tmp_path: Path) -> None:
    """One number that is none changes no other; a bit more than 1 is white."""
    values = np.full((4, 4), 0.4, np.float32)
    values[0] = np.nan, np.inf, -np.inf, 1.1
    Image.fromarray(values).save(tmp_path / "a.tiff")
    image = decode(str(tmp_path / "a.tiff"), 1)[0]
    assert image[0].tolist() == [0, 255, 0, 255] and image[1:].unique().tolist() == [102]


@pytest.mark.parametrize("bits", [8, 12])
def test_infinity_is_white_with_bits(tmp_path: Path, bits: int) -> None:
    Image.fromarray(np.array([[np.inf, -np.inf, np.nan, 2**bits - 1]], np.float32)).save(tmp_path / "a.tiff")
    assert decode(str(tmp_path / "a.tiff"), 1, bits=bits).flatten().tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_below_black_are_refused_with_bits(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.array([[-3000, 4095]], kind)).save(tmp_path / "a.tiff")
    with pytest.raises(
        UnreadableImage, match="are from -3000 to 4095, not 0 to 4095: shift them, so that 0 is black"
    ):
        decode(str(tmp_path / "a.tiff"), 1, bits=12)


def write_unsigned_tiff(path: Path, values: list[int]) -> None:
    """Writes a TIFF of one row of unsigned 32-bit integers, which is the type where the file names none."""
    facts = [(256, len(values)), (257, 1), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    facts.append((279, 4 * len(values)))
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in facts)
    content = struct.pack(f"<{len(values)}I", *values)
    directory = struct.pack("<H", len(facts)) + tags + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory)


def test_unsigned_32_bit_integers(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    write_unsigned_tiff(path, [0, 2**31 - 1, 2**31, 2**32 - 1])
    assert decode(str(path), 1, bits=32).flatten().tolist() == [0, 127, 128, 255]
    assert decode(str(path), 1, bits=31).flatten().tolist() == [0, 255, 255, 255]
    assert header(str(path))[2:] == ("unsigned 32-bit integers", 255, 2**32 - 1)
    with pytest.raises(
        UnreadableImage, match="unsigned 32-bit integers are from 0 to 4.29497e\\+09, not 0 to 255"
    ):
        decode(str(path), 1)


def test_16_bit_colours_of_which_some_are_used(tmp_path: Path) -> None:
    rows = np.tile(np.array([4095, 2048, 0], ">u2"), (HEIGHT, WIDTH))
    write_deep_png(tmp_path / "a.png", 2, rows)
    assert decode(str(tmp_path / "a.png"), 3)[:, 0, 0].tolist() == [15, 8, 0]
    assert decode(str(tmp_path / "a.png"), 3, bits=12)[:, 0, 0].tolist() == pytest.approx(
        [240, 128, 0], abs=1
    )
    assert header(str(tmp_path / "a.png"))[2:] == ("16-bit colours", 65535, 4095)
    with pytest.raises(
        UnreadableImage, match="of 16-bit colours the upper 8 bits are read, and none of them is in"
    ):
        decode(str(tmp_path / "a.png"), 3, bits=8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif"])
def test_pictures_of_one_bit(tmp_path: Path, suffix: str) -> None:
    BITS.save(tmp_path / f"bits.{suffix}")
    expect(tmp_path / f"bits.{suffix}", 0, 255, 0)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_deep_png(path: Path, kind: int, rows: np.ndarray) -> None:
    """Writes a PNG of 16 bits with rows `(HEIGHT, WIDTH * C) >u2`."""
    size = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize(("kind", "picture"), [(2, COLOUR), (4, with_alpha(GREY)), (6, with_alpha(COLOUR))])
def test_png_of_16_bits_that_pillow_cannot_write(tmp_path: Path, kind: int, picture: Image.Image) -> None:
    rows = (np.array(picture).astype(np.uint16) * 257).astype(">u2").reshape(HEIGHT, -1)
    write_deep_png(tmp_path / "a.png", kind, rows)
    left, right = (64, 192) if kind == 4 else (RED, BLUE)
    expect(tmp_path / "a.png", left, right, 0)


UPRIGHT = torch.tensor([[0, 1], [2, 3]])  # the corners of the picture below, by their colours
TURNED = {
    1: UPRIGHT, 2: UPRIGHT.flip(1), 3: UPRIGHT.rot90(2), 4: UPRIGHT.flip(0),
    5: UPRIGHT.T, 6: UPRIGHT.rot90(-1), 7: UPRIGHT.rot90(2).T, 8: UPRIGHT.rot90(1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int, channels: int) -> None:
    colours = torch.tensor([RED, BLUE, GREEN, (255, 255, 255)], dtype=torch.uint8)
    stored = colours[UPRIGHT].repeat_interleave(8, 0).repeat_interleave(12, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    by_suffix: dict[str, dict[str, Any]] = {
        "jpg": {"quality": 95, "subsampling": 0},
        "webp": {"lossless": True},
    }
    options = by_suffix.get(suffix, {})
    Image.fromarray(stored.numpy()).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    image = decode(str(tmp_path / f"a.{suffix}"), channels)
    assert image.shape == ((channels, 16, 24) if orientation < 5 else (channels, 24, 16))
    height, width = image.shape[1:]
    corners = (
        image[:, [height // 4, 3 * height // 4]][:, :, [width // 4, 3 * width // 4]].permute(1, 2, 0).float()
    )
    expected: Tensor = colours[TURNED[orientation]].float()
    if channels == 1:
        expected = (expected * torch.tensor(LUMA)).sum(2, keepdim=True)
    torch.testing.assert_close(corners, expected, atol=4, rtol=0)


def noise(path: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def assert_unreadable(path: Path) -> None:
    """The message is one line with the path and a reason in words, and names no source file of a library."""
    with pytest.raises(UnreadableImage) as caught:
        decode(str(path), 3)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert re.fullmatch(re.escape(str(path)) + r" can't be read as an image \(.*[a-z]{3} .*\)", message), (
        message
    )
    assert ".cpp" not in message and "dispatcher" not in message and message.count(str(path)) == 1


SUFFIXES = ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"]


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    content = noise(path)
    path.write_bytes(content[: int(len(content) * share)])
    assert_unreadable(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"no picture\nat all", bytes(100)], ids=["empty", "text", "zeros"])
def test_no_image(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    assert_unreadable(path)


@pytest.mark.parametrize("name", ["none.jpg", "none.webp", "it's ü.png"])
def test_missing(tmp_path: Path, name: str) -> None:
    assert_unreadable(tmp_path / name)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"can't be read as an image \(Is a directory\)"):
        decode(str(tmp_path), 3)


def exit_with_3_if_unreadable(path: str) -> None:
    faulthandler.disable()
    try:
        decode(path, 3)
    except UnreadableImage:
        os._exit(3)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_png_with_damaged_pixels(tmp_path: Path) -> None:
    """In a process of its own: a crash must not take the other tests along."""
    path = tmp_path / "a.png"
    content = bytearray(noise(path))
    content[2000] ^= 255
    path.write_bytes(content)
    process = multiprocessing.get_context("fork").Process(target=exit_with_3_if_unreadable, args=(str(path),))
    process.start()
    process.join(60)
    assert process.exitcode == 3


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_any_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ü 'a' \"b\".{suffix}"
    noise(path)
    assert decode(str(path), 3).shape == (3, 64, 48)


def test_prediction_reads_as_training_did(tmp_path: Path) -> None:
    """The spec that a checkpoint holds says which bits are used."""
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "a.png")
    facts: dict[str, Any] = {"class_names": "ab", "channels": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
    for bits, grey in ((12, 255), (None, 16)):
        images, _, failures = Files(DataSpec(**facts, bits=bits)).__getitems__([str(tmp_path / "a.png")])
        assert images is not None and images.unique().tolist() == [grey] and not failures
