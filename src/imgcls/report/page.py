"""What was found as a page (page.html): it needs no network, and can hold its pictures in itself."""

import base64
import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

log = logging.getLogger(__name__)
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("imgcls", "."), autoescape=True, trim_blocks=True)
TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False}  # no browser reads NaN or Infinity


class Grid(NamedTuple):
    """A table of text; the first `words` columns are words, and the others numbers."""

    head: list[str]
    rows: list[list[str]]
    words: int = 1


def render(template: str, path: Path, **facts: Any) -> None:
    """Writes a page; all that it shows of the facts is escaped."""
    text = TEMPLATES.get_template(template).render(facts)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_page(
    path: Path, title: str, sections: Sequence[dict[str, Any]], alarms: Sequence[str] = ()
) -> None:
    """Writes a page of pictures and tables.

    Args:
        sections: of each its `title`, and what it has of `text`, `facts` (names to words), `lines` (of text),
            `pictures` (addresses; with a `file`, as wide as the window and a link to it), `table` and `details`
            (`table` below), `gallery` (addresses, and words by name).
        alarms: lines above all.
    """
    render("report/page.html", path, title=title, sections=sections, alarms=alarms)


def table(frame: pd.DataFrame, words: int = 1, index: bool = False) -> Grid:
    """Returns a table, with its index as the first column if asked for."""
    frame = frame.rename_axis("").reset_index() if index else frame
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
    if isinstance(picture, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        content = buffer.getvalue()
    else:
        content = picture.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Around what a report can do without: a failure is a line in the log."""
    try:
        yield
    except Exception as error:
        log.warning("test report: no %s (%s)", what, " ".join(str(error).split()) or type(error).__name__)
