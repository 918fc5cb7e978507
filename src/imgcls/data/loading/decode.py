"""Image files to uint8 tensors, whatever their format, mode or depth."""

import io
import os
import re
import struct
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from imgcls.errors import UserError

# torchvision 0.29 points to TorchCodec; its decoders are still there, and need no FFmpeg.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")

MAX_PIXELS = 178_956_970  # where Pillow, too, takes an image for a bomb
Image.MAX_IMAGE_PIXELS = None  # `_opened` looks for itself, at a limit that can be set
# Types of numbers, as `Header` says them.
FLOATS, COLOURS, UNSIGNED = "floats", "16-bit colours", "unsigned 32-bit integers"
EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])
FAULTS = (RuntimeError, OSError, ValueError, SyntaxError, EOFError)  # what decoders raise


class UnreadableImage(UserError):
    """A file that is no whole image; the message names it and says why."""

    def reason(self) -> str:
        return str(self).partition(" can't be read as an image (")[2].removesuffix(")") or str(self)


def is_image(name: str) -> bool:
    """Whether a file is taken for an image by its name; hidden ones are not."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def decode(path: str, channels: int, max_pixels: int = MAX_PIXELS, bits: int | None = None) -> Tensor:
    """Returns the image in a file as `(channels, H, W) uint8`, turned as its EXIF orientation says.

    torchvision decodes JPEG, Pillow all else: torchvision's PNG decoder ends the process at damaged pixels,
    and its WebP decoder knows neither grey nor orientation. Of an animation the first frame counts, and
    transparency is dropped.

    Of images of more than 8 bits, `2**bits - 1` is white. Without `bits` the type of the numbers decides: white is
    65535 of 16-bit integers, 255 of 32-bit ones, 1 of floats. NaN is black, infinity white.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, no image, one of more than `max_pixels`, one with
            numbers below black, or without `bits` one with numbers beyond white.
    """
    try:
        data = np.fromfile(path, np.uint8)
        if is_jpeg(data) and (size := _jpeg_size(data)) is not None:
            _within(max_pixels, *size)
            image = decode_jpeg(torch.from_numpy(data), channels)
        else:
            with _opened(data, max_pixels) as opened:
                image = _pillow(opened, bits)
    except FAULTS as error:
        raise UnreadableImage(f"{path} can't be read as an image ({_reason(error)})") from error
    return in_channels(image, channels)


def is_jpeg(data: np.ndarray) -> bool:
    return data[:3].tobytes() == b"\xff\xd8\xff"


def decode_jpeg(data: Tensor, channels: int) -> Tensor:
    """Returns the image in the bytes `(n,) uint8` of a JPEG as `(channels, H, W) uint8`."""
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    return decode_image(data, mode, apply_exif_orientation=True)


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Returns uint8 images with so many channels: grey from colour or colour from grey."""
    if images.shape[-3] == channels:
        return images
    return F.rgb_to_grayscale(images) if channels == 1 else F.grayscale_to_rgb(images)


def _opened(data: np.ndarray, max_pixels: int) -> ImageFile.ImageFile:
    """Returns an image of which only the header was read: a small file can claim to hold any number of pixels."""
    if not len(data):
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(data.tobytes()))
    _within(max_pixels, *image.size)
    return image


def _jpeg_size(data: np.ndarray) -> tuple[int, int] | None:
    """Returns width and height by the frame header of a JPEG (ITU T.81, B.2.2), at a tenth of what Pillow takes for
    it; None where there is none, or a marker that is not known here."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF and 0xC0 <= (marker := int(data[place + 1])) < 0xFF:
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            height, width = struct.unpack_from(">HH", data.data, place + 5)
            return width, height
        place += 2 + int(struct.unpack_from(">H", data.data, place + 2)[0])
    return None


def _within(max_pixels: int, width: int, height: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"its {width:,}×{height:,} pixels are more than max_pixels={max_pixels}")


class Header(NamedTuple):
    """What a file says of its image; empty where it can't be read."""

    format: str = ""
    mode: str = ""
    numbers: str = ""  # the type of the numbers of an image of more than 8 bits
    white: float = 0.0  # which of them is white
    peak: float = 0.0  # the largest that is there


def header(path: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Returns what a file says of its image; of more than 8 bits, all of it is read."""
    try:
        with _opened(np.fromfile(path, np.uint8), max_pixels) as opened:
            numbers, white = _numbers(opened)
            out = Header(opened.format or "", opened.mode, numbers, white)
            if numbers:
                values = _finite(opened, numbers, white)
                peak = (
                    256 * values.max() + 255 if numbers == COLOURS else values.max()
                )  # the upper 8 bits were read
                out = out._replace(peak=float(peak))
    except FAULTS:
        return Header()
    return out


def _numbers(opened: ImageFile.ImageFile) -> tuple[str, float]:
    """Returns the type of the numbers of an image of more than 8 bits that is not loaded yet, and which is white."""
    if opened.mode == "F":
        return FLOATS, 1.0
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM")):
        return "16-bit integers", 65535.0
    if opened.mode == "I" and "I;32N" in str(opened.tile):  # Pillow's word for TIFF's unsigned ones
        return UNSIGNED, 255.0
    if opened.mode == "I":
        return "32-bit integers", 255.0
    return (COLOURS, 65535.0) if re.search("[ABKX];16[BLN]", str(opened.tile)) else ("", 255.0)


def _finite(image: Image.Image, numbers: str, white: float) -> np.ndarray:
    values = np.asarray(image)
    if numbers == UNSIGNED:  # Pillow takes those from 2**31 on for negative
        values = values.view(np.uint32)
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=white, neginf=0.0)


def _pillow(opened: ImageFile.ImageFile, bits: int | None) -> Tensor:
    opened.seek(0)
    numbers, white = _numbers(opened)
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        white = white if bits is None else 2.0**bits - 1
        values, slack = (
            _finite(image, numbers, white),
            0.5 * white if numbers == FLOATS else 0.0,
        )  # filters overshoot
        low, high = values.min(initial=0), values.max(initial=0)
        if low < -slack or (bits is None and high > white + slack):
            advice = "data.bits says what is white" if bits is None else "shift them, so that 0 is black"
            raise ValueError(f"its {numbers} are from {low:g} to {high:g}, not 0 to {white:g}: {advice}")
        array = _to_8_bits(values, white)
    else:
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow asks for this step
        array = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        if numbers and bits is not None:
            if bits <= 8:
                raise ValueError(
                    f"of {numbers} the upper 8 bits are read, and none of them is in data.bits={bits}"
                )
            array = _to_8_bits(array * 257.0, 2**bits - 1)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def _to_8_bits(values: np.ndarray, white: float) -> np.ndarray:
    return (values * (255 / white)).round().clip(0, 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    """Returns a library's error in a few words, without the places in its own source that it names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if text.startswith("cannot identify image file"):
        return "no image format that is known"
    return text.rpartition(".cpp:")[2].lstrip("0123456789:, ")
