"""What the sweeps of the runs recorded of themselves, in the sweep.yaml beside the runs: which metrics they
optimise, and on which scale they search a key."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from imgcls.config.check import typed
from imgcls.runs.run_files import LOADER, Damaged, read_file

LOGARITHMIC = re.compile(r"\btag\([^()]*\blog\b")  # tag(log, interval(1e-4, 1e-1))


@dataclass(frozen=True)
class SweepFile:
    """The types in a sweep.yaml, as far as they are relied on."""

    space: dict[str, str] | None = None  # keys, and their values as they were written
    optimized_metric: list[str] | None = None
    directions: list[Literal["min", "max"]] | None = None


@dataclass(frozen=True)
class Searched:
    """Keys that a sweep searched on a logarithmic or a linear scale; the metrics that it optimised, each with
    its direction, where all sweeps have the same ones."""

    logarithmic: set[str] = field(default_factory=set)
    linear: set[str] = field(default_factory=set)
    objectives: dict[str, str] = field(default_factory=dict)


def searched(paths: Iterable[str]) -> Searched:
    """Returns what the sweeps of these run directories searched; a file that can't be read says nothing."""
    files = [found for folder in {Path(path).parent for path in paths} if (found := sweep_file(folder))]
    space = [pair for found in files for pair in (found.space or {}).items()]
    logarithmic = {key for key, text in space if LOGARITHMIC.search(text)}
    all_objectives: list[dict[str, str]]
    all_objectives = [dict(zip(f.optimized_metric or (), f.directions or (), strict=False)) for f in files]
    same = len(all_objectives) > 0 and all(one == all_objectives[0] for one in all_objectives)
    linear = {key for key, text in space if "interval(" in text} - logarithmic
    return Searched(logarithmic, linear, all_objectives[0] if same else {})


def sweep_file(folder: Path) -> SweepFile | None:
    def parse(text: str) -> SweepFile:
        content: dict[str, Any] = yaml.load(text, LOADER)
        found: SweepFile = typed(content, SweepFile, "")
        return found

    try:
        return read_file(folder / "sweep.yaml", parse)
    except Damaged:
        return None
