"""What a run directory says of how it was made."""

import functools
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

log = logging.getLogger(__name__)


# Of files that git neither knows nor ignores, a record holds at most so many, of so many bytes each and in all.
NEW_FILES, NEW_FILE, ALL_NEW = 1000, 1_000_000, 10_000_000


def git(folder: Path, *words: str, **variables: str) -> str | None:
    """Returns what git says in a folder, or None where it fails or there is none."""
    command, environment = ["git", "-C", str(folder), *words], os.environ | variables
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="surrogateescape").removesuffix("\n") if done.returncode == 0 else None


def git_state(folder: Path, run_dir: Path | None = None) -> dict[str, Any]:
    """Returns commit, branch, status (what is changed or not tracked) and diff, of the repository that `folder` is in,
    if any. The diff holds the files that git does not know and does not ignore, too, but not those of `run_dir` or of
    other run directories; `left_out` names those that are too large or too many."""
    commit, top = git(folder, "rev-parse", "HEAD"), git(folder, "rev-parse", "--show-toplevel")
    if commit is None or top is None:
        return {}
    new, left_out = new_files(Path(top), run_dir)
    diff = git_diff(Path(top), new)
    return {
        "commit": commit,
        "branch": git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "status": git(folder, "status", "--porcelain"),
        "left_out": left_out
        if diff is not None
        else ["all that is not committed (git failed, or took over 30 s)"],
        "diff": diff or "",
    }


def new_files(top: Path, run_dir: Path | None) -> tuple[list[str], list[str]]:
    """Returns the files of a repository that git neither knows nor ignores: those for the record, and, with their
    size, those that are left out of it. Python and YAML come first: a run is made of them."""
    names = (git(top, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    sizes, folders = dict[str, int](), {top: False}  # whether a folder is a run directory, or lies in one

    def of_a_run(folder: Path) -> bool:
        if folder not in folders:
            record = all((folder / name).is_file() for name in ("config.yaml", "environment.json"))
            folders[folder] = record or folder == run_dir or of_a_run(folder.parent)
        return folders[folder]

    for name in (name for name in names if name and not of_a_run((top / name).parent)):
        with suppress(OSError):  # it is gone by now
            sizes[name] = (
                NEW_FILE + 1 if name.endswith("/") else (top / name).lstat().st_size
            )  # /: another repository
    kept, left_out, total = list[str](), list[str](), 0
    for name in sorted(sizes, key=lambda name: (not name.endswith((".py", ".yaml")), sizes[name])):
        if sizes[name] > NEW_FILE or total + sizes[name] > ALL_NEW or len(kept) == NEW_FILES:
            left_out.append(name if name.endswith("/") else f"{name} ({sizes[name] / 1e6:.1f} MB)")
        else:
            kept.append(name)
            total += sizes[name]
    return kept, left_out


def git_diff(top: Path, new: list[str]) -> str | None:
    """Returns what differs from the last commit, with the files `new` as `git apply` makes them; None where git fails.
    They are added to a copy of git's index: that of the user stays as it is."""
    words = ("diff", "--no-ext-diff", "--binary", "HEAD")
    index = top / (git(top, "rev-parse", "--git-path", "index") or "")
    if not new or not index.is_file():
        return git(top, *words)
    with tempfile.TemporaryDirectory() as own:
        copy = str(shutil.copy(index, own))
        Path(own, "new").write_bytes(b"\0".join(map(os.fsencode, new)))
        names = (f"--pathspec-from-file={own}/new", "--pathspec-file-nul")
        added = git(top, "add", "--intent-to-add", *names, GIT_INDEX_FILE=copy, GIT_LITERAL_PATHSPECS="1")
        return None if added is None else git(top, *words, GIT_INDEX_FILE=copy)


@functools.cache  # for each job of a sweep
def packages() -> dict[str, str]:
    """Returns the version of each package that is installed."""
    all_metadata = (
        d.metadata for d in metadata.distributions()
    )  # d.name and d.version would each read it again
    return {m["Name"]: m["Version"] for m in all_metadata if m["Name"]}


def environment() -> dict[str, Any]:
    """Returns the command, versions and hardware."""
    import torch

    cpu: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # newer than the oldest torch that will do
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
    state = git_state(Path.cwd(), run_dir.resolve())
    diff, left_out = state.pop("diff", ""), state.pop("left_out", [])
    if diff:
        (run_dir / "git.diff").write_bytes(f"{diff}\n".encode(errors="surrogateescape"))
    if left_out:
        words = "git.diff leaves out what git does not know: %s%s; commit it, or ignore it"
        log.warning(
            words, ", ".join(left_out[:3]), f" and {len(left_out) - 3:,} more" if len(left_out) > 3 else ""
        )
    record = environment() | {"data": data, "git": state | {"left_out": left_out}}
    write_text(run_dir / "environment.json", json.dumps(record, indent=2) + "\n")
    return state


def write_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Writes what a resume goes on with."""
    write_text(run_dir / "config.yaml", yaml_text(config))


class PlainDumper(yaml.SafeDumper):  # type: ignore[name-defined,misc]
    """Writes what stands in several places at each of them, and no aliases, which `imgcls compare` does not read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def yaml_text(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file, which is whole at any time."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def keeping_status(
    run_dir: Path, parameters: int, trained: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Around a training, on rank 0: keeps `status.json`, which tells a run that was killed from one that is done.

    The status is running, then finished, stopped (from outside), pruned or failed; the seconds are of all its starts.
    A resume that ends before a step is `trained` leaves the status as it was.
    """
    path, start = run_dir / "status.json", time.monotonic()
    found = path.read_text() if path.exists() else None  # it is resumed
    before = json.loads(found)["seconds"] if found else 0.0

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
        if found and status == "failed" and not trained():
            write_text(path, found)
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
