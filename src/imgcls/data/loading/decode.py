"""Image decoder: turns an image file into a uint8 tensor, whatever its format, mode or depth."""

import io
import os
import re
import struct
from typing import NamedTuple

import numpy as np
import torch
import torchcodec.decoders
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from imgcls.data.batch import in_channels
from imgcls.errors import UnreadableImage

MAX_PIXELS = 178_956_970  # Pillow, too, takes a larger image for a bomb
Image.MAX_IMAGE_PIXELS = None  # `_check_size` compares the size with a limit that can be set
# The types of numbers that `Header.numbers` names.
FLOATS, COLOURS, UNSIGNED = "floats", "16-bit colours", "unsigned 32-bit integers"
EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])
FAULTS = (RuntimeError, OSError, ValueError, SyntaxError, EOFError)  # the errors that decoders raise


def is_image(name: str) -> bool:
    """Returns whether a file counts as an image by its name; hidden files don't."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def decode(
    path: str,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    data: np.ndarray | None = None,
) -> Tensor:
    """Returns the image in a file as `(channels, H, W) uint8`, turned as its EXIF orientation says. Of a file
    that lies in memory `data (n,) uint8` are the bytes, and `path` is what an error calls it.

    TorchCodec decodes JPEG, Pillow the other formats: of animations the first frame, without transparency.
    In images of more than 8 bits, `2**bits - 1` is white. Without `bits` the type of the numbers decides:
    white is 65535 in 16-bit integers, 255 in 32-bit ones, 1 in floats. NaN is black, infinity white.

    Raises UnreadableImage: the file is missing, empty, truncated, no image, or has more than `max_pixels`; or
    its numbers go below black, or without `bits` beyond white.
    """
    try:
        data = np.fromfile(path, np.uint8) if data is None else data
        if is_jpeg(data) and (frame := _jpeg_frame(data)) is not None:
            _check_size(frame[:2], max_pixels)
            image = decode_jpeg(torch.from_numpy(data), channels)
        else:
            with _opened(data, max_pixels) as opened:
                opened.seek(0)
                image = from_pillow(opened, bits)
    except FAULTS as error:
        raise UnreadableImage(f"{path} can't be read as an image ({_reason(error)})") from error
    return in_channels(image, channels)


def is_jpeg(data: np.ndarray) -> bool:
    return data[:3].tobytes() == b"\xff\xd8\xff"


def is_plain_jpeg(data: np.ndarray, max_pixels: int) -> bool:
    """Returns whether the bytes are of a whole JPEG, grey or of three colours, of at most `max_pixels`."""
    frame = _jpeg_frame(data) if is_jpeg(data) and data[-2:].tobytes() == b"\xff\xd9" else None
    return frame is not None and frame[2] in (1, 3) and 0 < frame[0] * frame[1] <= max_pixels


def decode_jpeg(data: Tensor, channels: int) -> Tensor:
    """Returns the image in the bytes `(n,) uint8` of a JPEG as `(1 or 3, H, W) uint8`, turned upright."""
    image = torchcodec.decoders.decode_jpeg(data, mode="GRAY" if channels == 1 else "RGB")
    assert isinstance(image, Tensor)
    return image


def _opened(data: np.ndarray, max_pixels: int) -> ImageFile.ImageFile:
    """Returns an image of which Pillow has read the header only, because a small file can claim any size."""
    if not len(data):
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(data.tobytes()))
    _check_size(image.size, max_pixels)
    return image


def _jpeg_frame(data: np.ndarray) -> tuple[int, int, int] | None:
    """Returns width, height and number of colours from a JPEG's frame header (ITU T.81, B.2.2), if found;
    Pillow takes 30 µs."""
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF and 0xC0 <= (marker := int(data[place + 1])) < 0xFF:
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            height, width, colours = struct.unpack_from(">HHB", data.data, place + 5)
            return width, height, colours
        place += 2 + int(struct.unpack_from(">H", data.data, place + 2)[0])
    return None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ValueError(f"its {size[0]:,}×{size[1]:,} pixels are more than max_pixels={max_pixels}")


class Header(NamedTuple):
    """The facts that a file tells about its image; empty where the file can't be read."""

    format: str = ""
    mode: str = ""
    numbers: str = ""  # the type of the numbers in an image of more than 8 bits
    white: float = 0.0  # the number that is white
    peak: float = 0.0  # the largest number in the image


def header(path: str, max_pixels: int = MAX_PIXELS, data: np.ndarray | None = None) -> Header:
    """Returns the facts that a file, or its bytes `data (n,) uint8`, tell about its image; reads all numbers
    of one of more than 8 bits."""
    try:
        data = np.fromfile(path, np.uint8) if data is None else data
        with _opened(data, max_pixels) as opened:
            numbers, white = _numbers(opened)
            peak = _finite(opened, numbers, white).max() if numbers else 0.0
            if numbers == COLOURS:  # Pillow reads the upper 8 bits
                peak = 256 * peak + 255
            return Header(opened.format or "", opened.mode, numbers, white, float(peak))
    except FAULTS:
        return Header()


def _numbers(opened: Image.Image) -> tuple[str, float]:
    """Returns the type of an image's numbers ("" for 8 bits) before it is loaded, and the white one."""
    tiles = str(getattr(opened, "tile", ""))  # an image of a file that is not loaded yet has them
    if opened.mode == "F":
        return FLOATS, 1.0
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM")):
        return "16-bit integers", 65535.0
    if opened.mode == "I":  # I;32N is Pillow's word for the unsigned integers of TIFF
        return UNSIGNED if "I;32N" in tiles else "32-bit integers", 255.0
    return (COLOURS, 65535.0) if re.search("[ABKX];16[BLN]", tiles) else ("", 255.0)


def _finite(image: Image.Image, numbers: str, white: float) -> np.ndarray:
    """Returns the numbers of an image as float64, NaN as black and infinity as white."""
    values = np.asarray(image)
    if numbers == UNSIGNED:  # Pillow reads those from 2**31 on as negative
        values = values.view(np.uint32)
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=white, neginf=0.0)


def from_pillow(opened: Image.Image, bits: int | None = None) -> Tensor:
    """Returns the frame that Pillow's image is at as `(1 or 3, H, W) uint8`, turned as its EXIF says."""
    numbers, white = _numbers(opened)
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        array = _deep_grey(image, numbers, white, bits)
    else:
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow asks for this step
        array = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        if numbers and bits is not None and bits <= 8:
            lost = f"none of them is in data.bits={bits}"
            raise ValueError(f"of {numbers} the upper 8 bits are read, and {lost}")
        if numbers and bits is not None:
            array = _to_8_bits(array * 257.0, 2**bits - 1)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def _deep_grey(image: Image.Image, numbers: str, white: float, bits: int | None) -> np.ndarray:
    """Returns a grey image of more than 8 bits as `(H, W) uint8`; ValueError: a number is out of range."""
    white = white if bits is None else 2.0**bits - 1
    values = _finite(image, numbers, white)
    slack = 0.5 * white if numbers == FLOATS else 0.0  # filters overshoot
    low, high = values.min(initial=0), values.max(initial=0)
    if low < -slack or (bits is None and high > white + slack):
        advice = "data.bits says what is white" if bits is None else "shift them, so that 0 is black"
        raise ValueError(f"its {numbers} are from {low:g} to {high:g}, not 0 to {white:g}: {advice}")
    return _to_8_bits(values, white)


def _to_8_bits(values: np.ndarray, white: float) -> np.ndarray:
    return (values * (255 / white)).round().clip(0, 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    """Returns a library's error in a few words, without the place in its source code that it names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if text.startswith("cannot identify image file"):
        return "no image format that is known"
    return text.rpartition(".cpp:")[2].lstrip("0123456789:, ").removesuffix(".")
