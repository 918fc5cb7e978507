"""Image files to uint8 tensors, whatever their format, mode or depth."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.v2 import functional as F

from imgcls.errors import UserError

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])


class UnreadableImage(UserError):
    """A file that is no whole image; the message names it and says why."""


def decode(path: str, channels: int) -> Tensor:
    """Returns the image in a file as `(channels, H, W) uint8`, turned as its EXIF orientation says.

    torchvision decodes JPEG, PNG and single GIF frames; Pillow takes what it does not know (WebP, whose
    orientation and grey it ignores, BMP, TIFF, animations). Of an animation the first frame counts.

    Raises:
        UnreadableImage: the file is missing, empty, truncated or no image.
    """
    try:
        data = read_file(path)
        if bytes(data[:3].tolist()) in (b"\xff\xd8\xff", b"\x89PN"):
            mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
            image = decode_image(data, mode=mode, apply_exif_orientation=True)
        else:
            image = _pillow(path)
        if image.dtype == torch.uint16:
            image = (image.to(torch.int32) >> 8).to(torch.uint8)
    except (RuntimeError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} can't be read as an image ({_reason(path, error)})") from error
    if image.shape[0] != channels:
        image = F.rgb_to_grayscale(image) if channels == 1 else F.grayscale_to_rgb(image)
    return image


def _pillow(path: str) -> Tensor:
    with Image.open(path) as opened:
        opened.seek(0)
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):  # 16 bits and more: scaled to the largest value of the depth
            values = np.asarray(image, dtype=np.float64)
            top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1.0)
            return torch.from_numpy((values.clip(0, top) * (255 / top)).astype(np.uint8)).unsqueeze(0)
        grey = image.mode in ("1", "L", "LA")
        array = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(array).unsqueeze(0) if grey else torch.from_numpy(array).permute(2, 0, 1)


def _reason(path: str, error: Exception) -> str:
    """Returns a library's error without the places in its own source that it names."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = text.rpartition("Exception raised from")[0] or text
    text = text.rpartition(".cpp:")[2].lstrip("0123456789:, ") if ".cpp:" in text else text
    return text.replace(repr(path), "it").replace(path, "it") or type(error).__name__
