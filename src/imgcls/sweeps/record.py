"""sweep.yaml: what a sweep's folder says of the sweep. A grid in it may grow; its jobs keep their numbers."""

import itertools
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser

from imgcls.config.paths import shown
from imgcls.errors import UserError
from imgcls.runs.record import write_text, yaml_text
from imgcls.sweeps.space import choices

Space = dict[str, str]  # keys, and their values as they were written
Values = tuple[str, ...]  # of one job of a grid, in the order of the keys
ADVICE = "give another sweep.name"


def record(folder: Path, identity: dict[str, Any], more: dict[str, Any], grows: bool) -> list[Space]:
    """Writes sweep.yaml into the sweep's folder, which it makes, and returns the spaces that the sweep had,
    the first ones first. Raises UserError: it is the folder of another sweep."""
    path = folder / "sweep.yaml"
    found = yaml.safe_load(path.read_text()) if path.is_file() else None
    check_same(folder, identity, found or identity, grows)  # before there is a folder
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".sweep.lock"):
        found = yaml.safe_load(path.read_text()) if path.is_file() else {}
        space, spaces = identity["space"], list[Space](found.get("earlier", []))
        spaces += [found["space"]] if found else []
        if not spaces or (grows and not {*values_of(space, spaces[0])} <= numbers(spaces).keys()):
            spaces.append(space)
        words = {"name": folder.name, "command": shlex.join(sys.orig_argv), **more, **identity}
        earlier = {"earlier": spaces[:-1]} if spaces[1:] else {}
        write_text(path, yaml_text(words | {"space": spaces[-1]} | earlier))
    return spaces


def check_same(folder: Path, identity: dict[str, Any], found: dict[str, Any], grows: bool) -> None:
    """Raises UserError where a folder holds another sweep than the one of this identity."""
    for key, value in identity.items():
        old = found.get(key)
        if key == "fixed" and sorted(old or []) == sorted(value):
            continue
        if key == "space" and grows and set(old or ()) == set(value):
            continue  # other values make more jobs
        if old != value:
            keys = f"its keys are {', '.join(old or ())}, not {', '.join(value)}"
            what = keys if key == "space" and grows else f"its {key} is {old}, not {value}"
            raise UserError(f"{shown(folder)} holds another sweep: {what}; {ADVICE}")


def values_of(space: Space, keys: Iterable[str]) -> Iterator[Values]:
    """Yields the values of each job of a grid, in the order of the keys."""
    parser = OverridesParser.create()
    return itertools.product(*(choices(parser.parse_override(f"{key}={space[key]}")) for key in keys))


def numbers(spaces: list[Space]) -> dict[Values, int]:
    """Returns the number of each job of a grid that had these spaces one after the other."""
    found = dict[Values, int]()
    for values in itertools.chain.from_iterable(values_of(space, spaces[0]) for space in spaces):
        found.setdefault(values, len(found))
    return found
