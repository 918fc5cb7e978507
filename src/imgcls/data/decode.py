"""Image files to uint8 tensors, whatever their format, mode or depth."""

import io
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

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])


class UnreadableImage(UserError):
    """A file that is no whole image; the message names it and says why."""


def decode(path: str, channels: int) -> Tensor:
    """Returns the image in a file as `(channels, H, W) uint8`, turned as its EXIF orientation says.

    torchvision decodes JPEG, Pillow all else: torchvision's PNG decoder ends the process at damaged pixels,
    and its WebP decoder knows neither grey nor orientation. Of an animation the first frame counts, and
    transparency is dropped.

    Raises:
        UnreadableImage: the file is missing, empty, truncated or no image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
        if data[:3].tobytes() == b"\xff\xd8\xff":
            mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
            image = decode_image(torch.from_numpy(data), mode=mode, apply_exif_orientation=True)
        else:
            image = _pillow(data)
    except (RuntimeError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} can't be read as an image ({_reason(error)})") from error
    if image.shape[0] != channels:
        image = F.rgb_to_grayscale(image) if channels == 1 else F.grayscale_to_rgb(image)
    return image


def _pillow(data: np.ndarray) -> Tensor:
    if not len(data):
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(data.tobytes())) as opened:
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
    return torch.from_numpy(array).unsqueeze(0) if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def _reason(error: Exception) -> str:
    """Returns a library's error in a few words, without the places in its own source that it names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if text.startswith("cannot identify image file"):
        return "no image format that is known"
    return text.rpartition(".cpp:")[2].lstrip("0123456789:, ")
