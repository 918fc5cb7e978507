"""Pictures of coloured squares."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Path:
    """Writes a picture of coloured squares, in the format of the path's suffix."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
