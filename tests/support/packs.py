"""Packed folders."""

from pathlib import Path
from typing import Any

from imgcls.data.imagefolder import ImageFolder
from imgcls.tools.pack import PackConfig, pack


def packed(
    root: Path, out: Path | str = "out", channels: Any = 3, image_size: int = 24, **settings: Any
) -> Path:
    """Packs a folder in this process."""
    data = ImageFolder(
        root=str(root), image_size=image_size, channels=channels, mean=[0.5], std=[0.2], num_workers=0
    )
    defaults: dict[str, Any] = {"format": "pixels", "size": None, "quality": 95, "on_error": "refuse"}
    pack(data, Path(out), PackConfig({}, str(out), **(defaults | settings)))
    return Path(out)
