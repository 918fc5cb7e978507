"""Runs the commands of docs/first_hour.md in order, in an empty folder, and writes what they print into it.

python docs/first_hour.py     two minutes on two cores; with chromium also the pictures of the pages
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.S)
PICTURES = {"report_page": "runs/first/test", "inspect_page": "inspected"}


def run(command: str) -> str:
    """Runs a command as at a terminal of 112 columns; returns what it printed."""
    surroundings = {**os.environ, "COLUMNS": "112", "WANDB_MODE": "offline"}
    surroundings["PATH"] = f"{Path(sys.executable).parent}:{surroundings['PATH']}"
    done = subprocess.run(
        command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=surroundings
    )
    return done.stdout


def replayed(text: str, run: Callable[[str], str]) -> str:
    """Returns the page with what its commands print now; its Python is run, too."""

    def renewed(block: re.Match[str]) -> str:
        kind, content = block.groups()
        if kind == "python":
            exec(compile(content, PAGE.name, "exec"), {})
            return block[0]
        commands = [line for line in content.splitlines() if line.startswith("$ ")]
        shown = [f"{line}\n{shortened(run(line[2:]))}\n" for line in commands]
        return f"```{kind}\n{''.join(shown)}```"

    return BLOCK.sub(renewed, text)


def shortened(printed: str, most: int = 40) -> str:
    """Returns what a command printed, without the middle of a long text."""
    lines = [line.rstrip() for line in printed.strip().splitlines()]
    left = len(lines) - 25 - 5
    return "\n".join(lines if len(lines) <= most else [*lines[:25], f"… {left} more lines …", *lines[-5:]])


def photograph(name: str, folder: str) -> None:
    """Writes a picture of the top of a page."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1250"]
    target = f"--screenshot={PAGE.with_name(name)}.png"
    subprocess.run(["chromium", *options, target, f"file://{Path(folder).absolute()}/index.html"], check=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        PAGE.write_text(replayed(PAGE.read_text(), run))
        if shutil.which("chromium"):
            for name, folder in PICTURES.items():
                photograph(name, folder)
