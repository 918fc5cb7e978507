"""Image files to uint8 tensors, whatever their format, mode or depth."""

import io
import os
import struct
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from imgcls.errors import UserError

# torchvision 0.29 points to TorchCodec; its decoders are still there, and need no FFmpeg.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")

MAX_PIXELS = 178_956_970  # where Pillow, too, takes an image for a bomb
Image.MAX_IMAGE_PIXELS = None  # `_opened` looks for itself, at a limit that can be set
EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])


class UnreadableImage(UserError):
    """A file that is no whole image; the message names it and says why."""

    def reason(self) -> str:
        return str(self).partition(" can't be read as an image (")[2].removesuffix(")") or str(self)


def is_image(name: str) -> bool:
    """Whether a file is taken for an image by its name; hidden ones are not."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def decode(path: str, channels: int, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Returns the image in a file as `(channels, H, W) uint8`, turned as its EXIF orientation says.

    torchvision decodes JPEG, Pillow all else: torchvision's PNG decoder ends the process at damaged pixels,
    and its WebP decoder knows neither grey nor orientation. Of an animation the first frame counts, and
    transparency is dropped.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, no image, or one of more than `max_pixels`.
    """
    try:
        data = np.fromfile(path, np.uint8)
        if is_jpeg(data) and (size := _jpeg_size(data)) is not None:
            _within(max_pixels, *size)
            image = decode_jpeg(torch.from_numpy(data), channels)
        else:
            with _opened(data, max_pixels) as opened:
                image = _pillow(opened)
    except (RuntimeError, OSError, ValueError, SyntaxError, EOFError) as error:
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


def _opened(data: np.ndarray, max_pixels: int) -> Image.Image:
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


def _pillow(opened: Image.Image) -> Tensor:
    opened.seek(0)
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):  # more than 8 bits: the upper 8 of 16; floats are in [0, 1] or [0, 255]
        values = np.asarray(image, dtype=np.float64)
        scale = 1 / 257 if image.mode.startswith("I") else 255 if values.max(initial=0) <= 1 else 1
        array = (values * scale).round().clip(0, 255).astype(np.uint8)
    else:
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow asks for this step
        array = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def _reason(error: Exception) -> str:
    """Returns a library's error in a few words, without the places in its own source that it names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if text.startswith("cannot identify image file"):
        return "no image format that is known"
    return text.rpartition(".cpp:")[2].lstrip("0123456789:, ")
