"""What a report is about: the data and the checkpoint that were tested, and its training, as the run's
directory says."""

import datetime
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.config.paths import shown
from imgcls.runs.checkpoints import epoch_of
from imgcls.runs.record import yaml_text
from imgcls.runs.run_files import Damaged, curves, read_config, read_file, text_of


@dataclass(frozen=True)
class Origin:
    """Facts by name; the training's config as YAML; what it logged in each epoch, and the metric of it."""

    facts: dict[str, str] = field(default_factory=dict)
    config: str = ""
    logged: pd.DataFrame | None = None
    metric: str = ""


def origin_of(
    checkpoint: str | Path | None, run: Path | None = None, data: str | None = None, split: str = "test"
) -> Origin:
    """Returns what is known of a checkpoint that is tested (none: the last weights, in memory) and of its
    `run`, which is the folder above its own; `data` are other ones than the run's. A file of the run that is
    not there, or can't be read, leaves out what it says."""
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    place = Path(checkpoint).resolve().parent if checkpoint else None
    run = run or (place.parent if place is not None and place.name == "checkpoints" else None)
    config, environment, logged = read(run) if run else ({}, {}, None)
    names, git = config.get("names") or {}, environment.get("git") or {}
    commit = str(git.get("commit") or "")
    if commit and run and text_of(run / "git.diff"):
        commit += ", with changes that git.diff has"
    epoch = epoch_of(Path(checkpoint)) if checkpoint else None
    rows = logged[logged["epoch"] == epoch] if logged is not None else pd.DataFrame()
    metric = config.get("optimized_metric") or ""
    metric = metric[0] if isinstance(metric, list) else metric
    value = f", {metric} {rows[metric].iloc[0]:.4f}" if len(rows) and metric in rows else ""
    told = "" if logged is None or not len(logged) else f" of {int(logged['epoch'].max()) + 1}"
    facts = {
        "data": f"{data or names.get('data') or 'unnamed'}, {split} split",
        "backbone": str((config.get("backbone") or {}).get("name") or names.get("backbone") or ""),
        "checkpoint": shown(checkpoint) if checkpoint else "none: the last weights" if run else "",
        "epoch": "" if epoch is None else f"{epoch + 1}{told} ({epoch} in metrics.csv){value}",
        "trained by": as_typed(str(environment.get("command") or "")),
        "commit": commit,
        "date": now,
    }
    text = yaml_text(config) if config else ""
    return Origin({name: fact for name, fact in facts.items() if fact}, text, logged, metric)


def as_typed(command: str) -> str:
    """Returns a recorded command without the places of the interpreter and of our script."""
    try:
        words = shlex.split(command)
    except ValueError:  # of a quote that never ends
        return command
    place = next((i for i, word in enumerate(words) if Path(word).name == "imgcls"), None)
    return command if place is None else shlex.join(["imgcls", *words[place + 1 :]])


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame | None]:
    """Returns a run's config, environment and curves, empty where they can't be read."""

    def parse(text: str) -> dict[str, Any]:
        found = json.loads(text)
        return found if isinstance(found, dict) else {}

    config, environment, logged = dict[str, Any](), dict[str, Any](), None
    try:
        config = read_config(run)
        environment = read_file(run / "environment.json", parse)
        logged = curves(run)
    except Damaged:
        pass
    return config, environment, logged
