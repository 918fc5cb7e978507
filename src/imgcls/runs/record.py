"""The record that a run writes into its directory: config, environment, git state and status."""

import functools
import itertools
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from yaml.dumper import SafeDumper

from imgcls.errors import TrialPruned

log = logging.getLogger(__name__)

# A record holds at most this many files that git neither knows nor ignores, of so many bytes each and in all.
NEW_FILES, NEW_FILE, ALL_NEW = 1000, 1_000_000, 10_000_000


def git(folder: Path, *words: str, **variables: str) -> str | None:
    """Returns what git prints in a folder, or None where it fails or is not installed."""
    command, environment = ["git", "-C", str(folder), *words], os.environ | variables
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="surrogateescape").removesuffix("\n")


def git_state(folder: Path, run_dir: Path | None = None) -> dict[str, Any]:
    """Returns commit, branch, status (changed and new files) and diff of the repository of `folder`, if any.
    The diff has new files too, but not those of run directories, or too large or too many: `left_out`."""
    commit, top = git(folder, "rev-parse", "HEAD"), git(folder, "rev-parse", "--show-toplevel")
    if commit is None or top is None:
        return {}
    new, left_out = new_files(Path(top), run_dir)
    diff = git_diff(Path(top), new)
    if diff is None:
        left_out = ["all that is not committed (git failed, or took over 30 s)"]
    branch, status = git(folder, "rev-parse", "--abbrev-ref", "HEAD"), git(folder, "status", "--porcelain")
    state = {"commit": commit, "branch": branch, "status": status}
    return {**state, "left_out": left_out, "diff": diff or ""}


def new_files(top: Path, run_dir: Path | None) -> tuple[list[str], list[str]]:
    """Returns the files that git neither knows nor ignores and that are not of a run: those to record, and
    those left out, with sizes. Python and YAML files come first, because a run is made of them."""

    @functools.cache
    def is_run(folder: Path) -> bool:
        return folder == run_dir or all((folder / n).is_file() for n in ("config.yaml", "environment.json"))

    sizes = {}
    for name in (git(top, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0"):
        folders = itertools.takewhile(lambda folder: folder != top, (top / name).parents)
        if name and not any(map(is_run, folders)):
            with suppress(OSError):  # it is gone by now
                another_repository = name.endswith("/")
                sizes[name] = NEW_FILE + 1 if another_repository else (top / name).lstat().st_size
    kept, left_out, total = list[str](), list[str](), 0
    for name in sorted(sizes, key=lambda name: (not name.endswith((".py", ".yaml")), sizes[name])):
        if sizes[name] > NEW_FILE or total + sizes[name] > ALL_NEW or len(kept) == NEW_FILES:
            left_out.append(name if name.endswith("/") else f"{name} ({sizes[name] / 1e6:.1f} MB)")
        else:
            kept.append(name)
            total += sizes[name]
    return kept, left_out


def git_diff(top: Path, new: list[str]) -> str | None:
    """Returns what differs from the last commit, the files `new` included; None where git fails."""
    words = ("diff", "--no-ext-diff", "--binary", "HEAD")
    index = top / (git(top, "rev-parse", "--git-path", "index") or "")
    if not new or not index.is_file():
        return git(top, *words)
    with tempfile.TemporaryDirectory() as own:  # for a copy of git's index: the user's stays as it is
        copy = str(shutil.copy(index, own))
        Path(own, "new").write_bytes(b"\0".join(map(os.fsencode, new)))
        names = (f"--pathspec-from-file={own}/new", "--pathspec-file-nul")
        added = git(top, "add", "--intent-to-add", *names, GIT_INDEX_FILE=copy, GIT_LITERAL_PATHSPECS="1")
        return None if added is None else git(top, *words, GIT_INDEX_FILE=copy)


@functools.cache  # once for all jobs of a sweep
def packages() -> dict[str, str]:
    """Returns the version of each package that is installed."""
    found = [distribution.metadata for distribution in metadata.distributions()]  # .name would read it again
    return {facts["Name"]: facts["Version"] for facts in found if facts["Name"]}


def environment() -> dict[str, Any]:
    """Returns the command, versions and hardware."""
    import torch

    # The oldest torch that will do has no such function.
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return {
        "command": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": packages(),
    }


def write_record(run_dir: Path, config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Writes `config.yaml`, `environment.json` (with `data`, the fingerprint of the data) and `git.diff`;
    returns the git state without the diff."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_config(run_dir, config)
    state = git_state(Path.cwd(), run_dir.resolve())
    diff, left_out = state.pop("diff", ""), state.pop("left_out", [])
    if diff:
        (run_dir / "git.diff").write_bytes(f"{diff}\n".encode(errors="surrogateescape"))
    if left_out:
        more = f" and {len(left_out) - 3:,} more" if len(left_out) > 3 else ""
        words = "git.diff leaves out what git does not know: %s%s; commit it, or ignore it"
        log.warning(words, ", ".join(left_out[:3]), more)
    record = environment() | {"data": data, "git": state | {"left_out": left_out}}
    write_text(run_dir / "environment.json", json.dumps(record, indent=2) + "\n")
    return state


def write_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Writes the config with which a resume goes on."""
    write_text(run_dir / "config.yaml", yaml_text(config))


class PlainDumper(SafeDumper):
    """YAML dumper that writes a value in full wherever it stands: `imgcls compare` reads no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def yaml_text(content: dict[str, Any]) -> str:
    """Returns plain data as YAML, with its keys in their order."""
    return yaml.dump(content, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file, which is whole at any time."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def keeping_status(run_dir: Path, facts: dict[str, Any], trained: Callable[[], bool]) -> Iterator[None]:
    """Keeps `status.json` around a training, on rank 0: running, then finished, stopped (from outside),
    pruned or failed, with `facts` of the run; seconds are of all starts. A resume that fails before it has
    `trained` keeps it."""
    path, start = run_dir / "status.json", time.monotonic()
    found = path.read_text() if path.exists() else None  # the run is resumed
    before = json.loads(found)["seconds"] if found else 0.0

    def say(status: str, **more: str) -> None:
        seconds = round(before + time.monotonic() - start, 3)
        content = {"status": status, "seconds": seconds, **facts, **more}
        with suppress(OSError):  # where the disk is full, another message says so
            write_text(path, json.dumps(content, indent=2) + "\n")

    say("running")
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)
        status = "pruned" if isinstance(error, TrialPruned) else "stopped" if stopped else "failed"
        say(status, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        if found and status == "failed" and not trained():
            write_text(path, found)
        raise
    say("finished")


def rerooted(value: Any, before: str, now: str) -> Any:
    """Returns plain data in which paths in a run directory follow it from where it was to where it is now."""
    if isinstance(value, dict):
        return {rerooted(key, before, now): rerooted(item, before, now) for key, item in value.items()}
    if isinstance(value, list):
        return [rerooted(item, before, now) for item in value]
    moved = isinstance(value, str) and (value == before or value.startswith(f"{before}/"))
    return now + value[len(before) :] if moved else value
