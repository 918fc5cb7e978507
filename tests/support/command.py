"""The command as users run it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imgcls(*arguments: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    environment = {**os.environ, "COLUMNS": "140", **variables}
    command = [sys.executable, "-m", "imgcls", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
