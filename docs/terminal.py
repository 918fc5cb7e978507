"""Draws what commands printed, as an SVG picture of a terminal: draw(path, [("imgcls train", "…"), …])."""

import math
import re
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

THEME = TerminalTheme(
    (250, 250, 250),
    (40, 42, 46),
    [
        (40, 42, 46),
        (170, 40, 40),
        (40, 120, 60),
        (150, 100, 0),
        (40, 90, 160),
        (120, 60, 140),
        (0, 120, 130),
        (90, 90, 90),
    ],
)
# rich's own frame asks for a font from the network
FRAME = """<svg viewBox="-10 -10 WIDTH HEIGHT" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
 font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}</defs>
<rect x="-9" y="-9" width="BOX_WIDTH" height="BOX_HEIGHT" rx="8" fill="#fafafa" stroke="#d0d0d0" />
<g clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g>
</g></svg>
"""


def draw(path: Path, shown: list[tuple[str, str]], width: int = 112) -> None:
    """Draws commands, each with what it printed (with or without ANSI colours)."""
    console = Console(record=True, width=width, file=StringIO())
    for command, printed in shown:
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(printed.rstrip()))
    svg = console.export_svg(theme=THEME, code_format=FRAME, unique_id="t", font_aspect_ratio=0.602)
    wide, high = (
        math.ceil(float(n)) for n in re.findall(r'<rect x="0" y="0" width="(\S+)" height="(\S+)"', svg)[0]
    )
    sizes = {"BOX_WIDTH": wide + 18, "BOX_HEIGHT": high + 22, "WIDTH": wide + 20, "HEIGHT": high + 24}
    for word, size in sizes.items():
        svg = svg.replace(word, str(size), 1)
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
