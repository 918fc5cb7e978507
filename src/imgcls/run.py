"""What a run directory says of how it was made."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml


def git_state(folder: Path) -> dict[str, Any]:
    """Returns commit, branch, status (what is changed or not tracked) and diff, of the repository that `folder` is in, if any."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, errors="surrogateescape"
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.rstrip("\n") if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    return {
        "commit": commit,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "status": git("status", "--porcelain"),
        "diff": git("diff", "--no-ext-diff", "--binary", "HEAD") or "",
    }


def environment() -> dict[str, Any]:
    """Returns the command, versions and hardware."""
    import torch

    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that will do
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu.get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "devices": devices,
        "packages": {d.name: d.version for d in metadata.distributions() if d.name},
    }


def write_record(run_dir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes `config.yaml` (resolved), `environment.json` and `git.diff`; returns the git state without the diff."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    git = git_state(Path.cwd())
    diff = git.pop("diff", "")
    if diff:
        (run_dir / "git.diff").write_text(diff + "\n", errors="surrogateescape")
    (run_dir / "environment.json").write_text(json.dumps(environment() | {"git": git}, indent=2) + "\n")
    return git


def cache_dir() -> Path:
    """Returns the folder for what can be made anew at any time. Raises RuntimeError where this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls"


def shown(path: Path | str) -> str:
    """Returns a path as short as it can be written here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def hydra_quoted(text: str) -> str:
    """Returns a value as Hydra's command-line grammar takes it: in quotes where it has characters of the grammar."""
    if re.fullmatch(r"[\w./+-]+", text):
        return text
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"
