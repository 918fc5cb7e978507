"""Run directories as a table, from local files alone: one row for each run."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import Field

from imgcls.config.check import typed
from imgcls.config.metrics import direction
from imgcls.errors import UserError

FACTS = ("path", "name", "status", "reason", "overrides")
COSTS = ("seconds", "images_per_second", "parameters")
METRICS = ("best/", "last/", "test/")
OF_THE_TABLE = ("path", "name", "status", "reason", *COSTS)  # keys of a config can't take their places
OF_ONE_RUN = ("run_dir", "cwd", "names", "resume", "overwrite", "sweep", "job", "launcher")
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[attr-defined]  # in C: six times as fast


class Damaged(Exception):
    """A run directory can't be read; the message says which file, and why."""


@dataclass(frozen=True)
class Status:
    """The types in a status.json."""

    status: Literal["running", "finished", "stopped", "pruned", "failed"]
    seconds: float | None = None
    parameters: Annotated[int, Field(lt=1 << 63)] | None = None
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


def read_runs(folders: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Returns a row for each run in or below the folders, with these columns, as far as the runs have them:

    - `path`, and `name`, which is the path below the folder
    - `overrides`: what its command line changed
    - `status`: finished, failed, stopped, pruned, unfinished (it runs still, or was killed) or damaged, and `reason`
    - the config by dotted names (`optimizer.lr`); a group alone (`optimizer`) is what was chosen for it
    - `best/…`, all metrics of the epoch where the run's `optimized_metric` was best; `last/…` of the last; `test/…`
    - `seconds` from start to end; `images_per_second` of training, the median over epochs; `parameters`

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    rows = []
    for folder in (Path(given).expanduser() for given in folders):
        if not folder.is_dir():
            raise UserError(
                f"runs={folder}: there is no such folder; expected one with runs of imgcls train in it"
            )
        found = list(find_runs(folder))
        if not found:
            raise UserError(f"runs={folder}: no run is in or below it; expected what imgcls train made")
        rows += [{"path": str(path), "name": _name(path, folder), **read_run(path)} for path in found]
    table = pd.DataFrame(rows).drop_duplicates("path", ignore_index=True)
    known = [name for name in table.columns if name not in (*FACTS, *COSTS) and not name.startswith(METRICS)]
    measured = [name for start in METRICS for name in table.columns if name.startswith(start)]
    return table.reindex(columns=[*FACTS, *known, *measured, *COSTS])


def find_runs(folder: Path) -> Iterator[Path]:
    """Yields the run directories in or below a folder, sorted; also those of a sweep's jobs that failed at once."""
    for place, folders, files in os.walk(folder):
        hydra = _text(Path(place, ".hydra", "hydra.yaml")) if ".hydra" in folders else ""
        begun = "config_name: train\n" in hydra and "mode: MULTIRUN\n" in hydra
        if begun or {"config.yaml", "metrics.csv", "status.json"} & set(files):
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _name(path: Path, folder: Path) -> str:
    return path.name if path == folder else str(path.relative_to(folder))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def read_run(path: Path) -> dict[str, Any]:
    """Returns what `read_runs` says of one run directory."""
    row: dict[str, Any] = {"status": "failed", "reason": "it ended before training began"}
    try:
        if not any((path / name).exists() for name in ("config.yaml", "metrics.csv", "status.json")):
            return row
        row |= _status(path)
        config = read_config(path)
        metric = config.get("optimized_metric")
        row |= {n: v for n, v in flat(config).items() if n not in OF_THE_TABLE and not n.startswith(METRICS)}
        row["optimized_metric"] = metric[0] if isinstance(metric, list) else metric
        if (path / "metrics.csv").exists():
            row |= _summary(curves(path), row["optimized_metric"])
        elif row["status"] == "finished" and "csv" in (config.get("logger") or {}):
            raise Damaged("metrics.csv is not there")
        if (path / "test" / "metrics.json").exists():
            tested = _read(
                path / "test" / "metrics.json", lambda text: typed(json.loads(text), dict[str, float], "")
            )
            row |= {name: value for name, value in tested.items() if name.startswith("test/")}
    except (Damaged, OSError) as error:
        row |= {"status": "damaged", "reason": str(error)}
    return row


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Returns the file parsed. Raises Damaged where that fails in whatever way, so that no run takes others down."""
    try:
        return parse(path.read_text())
    except FileNotFoundError:
        raise Damaged(f"{path.name} is not there") from None
    except Exception as error:
        raise Damaged(
            f"{path.name} can't be read: {' '.join(str(error).split()).lstrip('=')[:120]}"
        ) from error


def _status(path: Path) -> dict[str, Any]:
    if not (path / "status.json").exists():  # of a version that wrote none
        done = (path / "test" / "metrics.json").exists()
        return {"status": "finished" if done else "unfinished", "reason": "" if done else "no test was made"}
    found = _read(path / "status.json", lambda text: typed(json.loads(text), Status, ""))
    if found.status == "running":
        return {
            "status": "unfinished",
            "reason": "it runs still, or was killed",
            "parameters": found.parameters,
        }
    return {
        "status": found.status,
        "reason": found.error,
        "seconds": found.seconds,
        "parameters": found.parameters,
    }


def read_config(path: Path) -> dict[str, Any]:
    """Returns the resolved config of a run directory. Raises Damaged."""

    def parse(text: str) -> dict[str, Any]:
        # A few lines of aliases can stand for more than fits into memory. None of ours has any.
        if "*" in text and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, LOADER)):  # type: ignore[attr-defined]
            raise ValueError("it has aliases, which no run writes")
        config: dict[str, Any] = yaml.load(text, LOADER)
        typed(config, Config, "")
        flat(config)  # fails where it is nested too deep
        return config

    return _read(path / "config.yaml", parse)  # type: ignore[no-any-return]


def _environment(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    typed(content, Environment, "")
    return content


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config by dotted names, without what differs between any two runs: where they lie, and their names."""
    run_dir, chosen = config.get("run_dir"), config.get("names") or {}
    out = {"overrides": chosen.get("run")} | {
        name: chosen[name] for name in ("data", "backbone") if name in chosen
    }

    def add(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name == "callbacks.pruning":  # which trial of which search
                continue
            if isinstance(value, dict):
                if "_target_" in value:
                    out.setdefault(name, str(value["_target_"]).rpartition(".")[2])
                add({k: v for k, v in value.items() if k != "_target_"}, f"{name}.")
            elif isinstance(value, str) and run_dir and value.startswith(run_dir):
                out[name] = f".{value.removeprefix(run_dir)}"
            else:
                plain = (
                    value is None
                    or isinstance(value, str | float)
                    or (isinstance(value, int) and abs(value) < 1 << 63)
                )
                out[name] = value if plain else str(value)

    add({key: value for key, value in config.items() if key not in OF_ONE_RUN}, "")
    return out


def curves(path: str | Path) -> pd.DataFrame:
    """Returns what a run logged, a row an epoch: epoch, step, lr, train/…, val/…, images_per_second. Raises Damaged."""

    def parse(text: str) -> pd.DataFrame:
        table = pd.read_csv(io.StringIO(text))
        whole = text.endswith("\n") and "epoch" in table and isinstance(table.index, pd.RangeIndex)
        if not whole or table.select_dtypes(exclude="number").shape[1]:
            raise ValueError("it is cut short, or has other things than numbers in it")
        return table

    return _read(Path(path) / "metrics.csv", parse)  # type: ignore[no-any-return]


def _summary(table: pd.DataFrame, metric: Any) -> dict[str, float]:
    """Returns the best epoch's and the last one's metrics."""
    rows = {"last": len(table) - 1} if len(table) else {}
    if metric in table and table[metric].notna().any():
        rows["best"] = int(table[metric].argmin() if direction(metric) == "min" else table[metric].argmax())
    out = {"images_per_second": table["images_per_second"].median()} if "images_per_second" in table else {}
    values = table.to_numpy()
    for which, row in rows.items():
        out |= {f"{which}/{n}": v for n, v in zip(table, values[row], strict=True) if n != "step" and v == v}
    return out


def differences(one: Path, other: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """Returns what differs between two run directories, as (name, of the one, of the other): config, environment, git."""
    configs, environments = [], []
    for path in (one, other):
        configs.append(
            {name: value for name, value in flat(read_config(path)).items() if name != "overrides"}
        )
        found = _read(path / "environment.json", _environment)
        packages, git, data = (found.pop(name, None) or {} for name in ("packages", "git", "data"))
        diff = _text(path / "git.diff")
        git = {
            "commit": git.get("commit"),
            "diff": f"{diff.count(chr(10)):,} lines" if diff else "none",
            "text": diff,
        }
        environments.append(({**found, **{f"{k} (package)": v for k, v in packages.items()}}, git, data))
    sides = {
        "config": configs,
        "environment": [e[0] for e in environments],
        "git": [e[1] for e in environments],
    }
    sides["data"] = [{name: str(value) for name, value in e[2].items()} for e in environments]
    out = {}
    for title, (a, b) in sides.items():
        out[title] = [(n, a.get(n), b.get(n)) for n in dict.fromkeys([*a, *b]) if a.get(n) != b.get(n)]
    if [name for name, *_ in out["git"]] == ["text"]:  # the same number of lines, but others
        out["git"] = [("diff", "differs", "differs")]
    out["git"] = [row for row in out["git"] if row[0] != "text"]
    return out


def written(value: Any) -> str:
    """Returns a value as it is written on a command line."""
    return "null" if value is None or value != value else str(value).removesuffix(".0")


def finished(table: "pd.DataFrame", target: str) -> "pd.DataFrame":
    return table[(table["status"] == "finished") & table[target].notna()]
