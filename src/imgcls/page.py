"""What was found as a page (page.html): it needs no network, and can hold its pictures in itself."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from PIL import Image


def write_page(path: Path, title: str, sections: Sequence[dict[str, Any]], alarms: Sequence[str] = ()) -> None:
    """Writes the page.

    Args:
        sections: of each its `title`, and what it has of `text`, `facts` (names to words), `lines` (of text),
            `pictures` (addresses; with a `file`, as wide as the window and a link to it), `table` and `details`
            (`table` below), `gallery` (addresses, and words by name).
        alarms: lines above all.
    """
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(template)
    text = page.render(title=title, sections=sections, alarms=alarms)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def table(frame: pd.DataFrame, kind: str = "", **how: Any) -> str:
    """Returns a table; what is text in it stays text."""
    how = {"index": False, "float_format": "{:.4f}".format, "na_rep": "", **how}
    return frame.to_html(border=0, justify="inherit", classes=kind, **how)


def inline(picture: Path | np.ndarray) -> str:
    """Returns the address of a PNG file, or of pixels `(H, W, 3) uint8`, that lies within the page."""
    if isinstance(picture, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        content = buffer.getvalue()
    else:
        content = picture.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
