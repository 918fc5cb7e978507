"""What a run directory says of how it was made."""

import functools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@functools.cache  # for each job of a sweep
def packages() -> dict[str, str]:
    """Returns the version of each package that is installed."""
    all_metadata = (d.metadata for d in metadata.distributions())  # d.name and d.version would each read it again
    return {m["Name"]: m["Version"] for m in all_metadata if m["Name"]}


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
        "threads": torch.get_num_threads(),
        "devices": devices,
        "packages": packages(),
    }


def write_record(run_dir: Path, config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Writes `config.yaml` (resolved), `environment.json` (`data`: its fingerprint) and `git.diff`; returns the git
    state without the diff."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_config(run_dir, config)
    git = git_state(Path.cwd())
    diff = git.pop("diff", "")
    if diff:
        (run_dir / "git.diff").write_text(diff + "\n", errors="surrogateescape")
    write_text(run_dir / "environment.json", json.dumps(environment() | {"data": data, "git": git}, indent=2) + "\n")
    return git


def write_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Writes what a resume goes on with."""
    write_text(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def write_text(path: Path, text: str) -> None:
    """Writes a small file, which is whole at any time."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def keeping_status(run_dir: Path, parameters: int) -> Iterator[None]:
    """Around a training, on rank 0: keeps `status.json`, which tells a run that was killed from one that is done.

    The status is running, then finished, stopped (from outside), pruned or failed; the seconds are of all its starts.
    """
    path, start = run_dir / "status.json", time.monotonic()
    before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0  # it is resumed

    def say(status: str, **more: str) -> None:
        facts = {
            "status": status,
            "seconds": round(before + time.monotonic() - start, 3),
            "parameters": parameters,
            **more,
        }
        with suppress(OSError):  # on a full disk, what filled it is said elsewhere
            write_text(path, json.dumps(facts, indent=2) + "\n")

    say("running")
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)
        status = "pruned" if type(error).__name__ == "TrialPruned" else "stopped" if stopped else "failed"
        say(status, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise
    say("finished")


def rerooted(value: Any, before: str, now: str) -> Any:
    """Returns a value in which paths in the run directory follow it to where it was moved."""
    if isinstance(value, dict):
        return {rerooted(key, before, now): rerooted(item, before, now) for key, item in value.items()}
    if isinstance(value, list):
        return [rerooted(item, before, now) for item in value]
    moved = isinstance(value, str) and (value == before or value.startswith(f"{before}/"))
    return now + value[len(before) :] if moved else value


def cache_dir() -> Path:
    """Returns the folder for what can be made anew at any time. Raises RuntimeError where this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls"


def shown(path: Path | str) -> str:
    """Returns a path as short as it can be written here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def hydra_quoted(text: str) -> str:
    """Returns a value as Hydra's command-line grammar takes it: in quotes where it has characters of the grammar."""
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), text)
    return f"'{escaped}'"
