"""The files of one run directory, read and checked; its best epoch; and what differs between two runs. pandas
is imported where it is used: a training needs it at its end alone."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field
from yaml.events import AliasEvent
from yaml.loader import SafeLoader

from imgcls.config.check import typed

if TYPE_CHECKING:
    import pandas as pd

Parsed = TypeVar("Parsed")
SMALLER = ("train/loss", "val/loss", "val/calibration_error", "val/loss_unscaled")  # is better
OF_ONE_RUN = ("run_dir", "cwd", "names", "resume", "overwrite", "sweep", "job", "launcher")
LOADER: Any = getattr(yaml, "CSafeLoader", SafeLoader)  # in C: six times as fast


class Damaged(Exception):
    """A run directory can't be read; the message says which file, and why."""


@dataclass(frozen=True)
class Status:
    """The types in a status.json."""

    status: Literal["running", "finished", "stopped", "pruned", "failed"]
    seconds: float | None = None
    parameters: Annotated[int, Field(lt=1 << 63)] | None = None
    better: dict[str, Literal["min", "max"] | None] | None = (
        None  # the directions of metrics; None: of before
    )
    error: str = ""


@dataclass(frozen=True)
class Config:
    """The types in a config.yaml, as far as they are relied on."""

    names: dict[str, str | None] | None = None
    optimized_metric: str | Annotated[list[str], Field(min_length=1)] | None = None
    run_dir: str | None = None
    logger: dict[str, Any] | None = None


@dataclass(frozen=True)
class Environment:
    """The types in an environment.json, as far as they are relied on."""

    packages: dict[str, Any] | None = None
    git: dict[str, Any] | None = None
    data: dict[str, Any] | None = None


def read_config(path: Path) -> dict[str, Any]:
    """Returns the resolved config of a run directory. Raises Damaged."""

    def parse(text: str) -> dict[str, Any]:
        # A few lines of aliases can stand for more than fits into memory. No run writes any.
        if "*" in text and any(isinstance(event, AliasEvent) for event in yaml.parse(text, LOADER)):
            raise ValueError("it has aliases, which no run writes")
        config: dict[str, Any] = yaml.load(text, LOADER)
        typed(config, Config, "")
        flat(config)  # fails where it is nested too deep
        return config

    return read_file(path / "config.yaml", parse)


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config by dotted names, without the places and names in which any two runs differ."""
    run_dir, chosen = config.get("run_dir"), config.get("names") or {}
    out = {"overrides": chosen.get("run")}
    out |= {name: chosen[name] for name in ("data", "backbone") if name in chosen}

    def add(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name == "callbacks.pruning":  # it says which trial of which search the run is
                continue
            if isinstance(value, dict):
                if "_target_" in value:
                    out.setdefault(name, str(value["_target_"]).rpartition(".")[2])
                add({k: v for k, v in value.items() if k != "_target_"}, f"{name}.")
            elif isinstance(value, str) and run_dir and value.startswith(run_dir):
                out[name] = f".{value.removeprefix(run_dir)}"
            elif isinstance(value, str | float | None) or (isinstance(value, int) and abs(value) < 1 << 63):
                out[name] = value
            else:  # a column holds no list, and no integer of more than 64 bits
                out[name] = str(value)

    add({key: value for key, value in config.items() if key not in OF_ONE_RUN}, "")
    return out


def curves(path: str | Path) -> "pd.DataFrame":
    """Returns what a run logged in each epoch: epoch, step, lr, train/…, val/…, speed. Raises Damaged."""
    import pandas as pd

    def parse(text: str) -> pd.DataFrame:
        table = pd.read_csv(io.StringIO(text))
        whole = text.endswith("\n") and "epoch" in table and isinstance(table.index, pd.RangeIndex)
        if not whole or table.select_dtypes(exclude="number").shape[1]:
            raise ValueError("it is cut short, or has other things than numbers in it")
        return table

    return read_file(Path(path) / "metrics.csv", parse)


def read_file(path: Path, parse: Callable[[str], Parsed]) -> Parsed:
    """Returns the file parsed. Raises Damaged for whatever fails, so that no run takes others down."""
    try:
        return parse(path.read_text())
    except FileNotFoundError:
        raise Damaged(f"{path.name} is not there") from None
    except Exception as error:
        reason = " ".join(str(error).split()).lstrip("=")[:120]
        raise Damaged(f"{path.name} can't be read: {reason}") from error


def text_of(path: Path) -> str:
    """Returns the text of a file, empty where it can't be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_metrics(path: Path) -> dict[str, float]:
    """Returns what a run's test measured, by name; nothing where there was none. Raises Damaged."""
    if not (path / "test" / "metrics.json").exists():
        return {}
    tested: dict[str, float] = read_file(
        path / "test" / "metrics.json", lambda text: typed(json.loads(text), dict[str, float], "")
    )
    return {name: value for name, value in tested.items() if name.startswith("test/")}


def circumstances(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the values by which a run was made: config, environment, git and data. Raises Damaged."""

    def parse(text: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(text)
        typed(content, Environment, "")
        return content

    config = flat(read_config(path))
    del config["overrides"]
    environment = read_file(path / "environment.json", parse)
    packages, git, data = (environment.pop(name, None) or {} for name in ("packages", "git", "data"))
    environment |= {f"{name} (package)": version for name, version in packages.items()}
    diff = text_of(path / "git.diff")
    git = {"commit": git.get("commit"), "diff": f"{diff.count(chr(10)):,} lines" if diff else "none"}
    data = {name: str(value) for name, value in data.items()}
    return {"config": config, "environment": environment, "git": git, "data": data}


def differences(one: Path, other: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """Returns by part of the circumstances what differs between two runs, as (name, of one, of the other).
    Raises Damaged where a file of one of them can't be read."""
    found, theirs = dict[str, list[tuple[str, Any, Any]]](), circumstances(other)
    for part, ours in circumstances(one).items():
        values = {name: (ours.get(name), theirs[part].get(name)) for name in ours | theirs[part]}
        found[part] = [(name, *pair) for name, pair in values.items() if pair[0] != pair[1]]
    if not found["git"] and text_of(one / "git.diff") != text_of(other / "git.diff"):  # of as many lines
        found["git"] = [("diff", "differs", "differs")]
    return found


def direction(metric: str, better: dict[str, Any] | None) -> str:
    """Returns "min" or "max", as a run's status.json has it for a metric (`better`); a test's metric has the
    direction of validation's. Runs of an older version recorded none; all had the same metrics."""
    name = metric.removeprefix("best/").removeprefix("last/")
    validated = f"val/{name.removeprefix('test/')}"
    known = better or dict.fromkeys(SMALLER, "min")
    return known.get(name) or known.get(validated) or "max"


def directions(path: Path) -> dict[str, Any] | None:
    """Returns the directions that a run's status.json has; None where there are none."""
    try:
        status: Status = read_file(path / "status.json", lambda text: typed(json.loads(text), Status, ""))
    except Damaged:
        return None
    return status.better


def optimised(run_dir: Path, metric: str | list[str]) -> float | list[float] | None:
    """Returns the best value of a metric; of several, those of the epoch that was best by the first."""
    names = [metric] if isinstance(metric, str) else metric
    best = best_epoch(run_dir, names[0])
    values = [best[f"best/{name}"] for name in names if f"best/{name}" in best]
    if len(values) < len(names):
        return None
    return values[0] if isinstance(metric, str) else values


def best_epoch(run_dir: Path, monitor: str) -> dict[str, float]:
    """Returns as `best/…` all metrics of the epoch where `monitor` was best; none without a metrics.csv."""
    if not (run_dir / "metrics.csv").is_file():
        return {}
    import pandas as pd

    table = pd.read_csv(run_dir / "metrics.csv")
    best = best_row(table, monitor, direction(monitor, directions(run_dir)))
    measured = {} if best is None else table.iloc[best].dropna().to_dict()
    return {f"best/{name}": float(value) for name, value in measured.items()}


def best_row(table: "pd.DataFrame", metric: str | None, mode: str) -> int | None:
    """Returns the row of a metrics.csv where a metric was best, or None where it was never measured."""
    if metric not in table or table[metric].isna().all():
        return None
    return int(table[metric].argmin() if mode == "min" else table[metric].argmax())
