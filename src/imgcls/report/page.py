"""HTML pages: fills Jinja templates into files that need no network and can hold their own pictures."""

import base64
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("imgcls", "."), autoescape=True, trim_blocks=True)
TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False}  # no browser reads NaN or Infinity


class Grid(NamedTuple):
    """A table of text; the first `words` columns are words, and the others numbers."""

    head: list[str]
    rows: list[list[str]]
    words: int = 1


def render(template: str, path: Path, **facts: Any) -> None:
    """Writes a page; the template escapes all facts that it shows. Its filters: `inline` and `plain`."""
    text = TEMPLATES.get_template(template).render(facts)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def table(frame: pd.DataFrame, words: int = 1) -> Grid:
    """Returns a frame as a table of text, without its index."""
    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return Grid([str(name) for name in frame.columns], rows, words)


def cell(value: Any) -> str:
    """Returns a number with four places, a count with commas, and nothing for what is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plain(text: str) -> str:
    """Returns a text with its line ends, escape codes and bytes that are no text spelt out."""
    return text if text.isprintable() else repr(text)[1:-1]


def inline(picture: Path | np.ndarray) -> str:
    """Returns the address of a PNG file, or of pixels `(H, W, 3) uint8`, that lies within the page."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        content = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


TEMPLATES.filters |= {"inline": inline, "plain": plain}
