"""imgcls reproduce: trains a run once more, and says whether metrics and weights are the same to the bit."""

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from imgcls.commands import train
from imgcls.config.paths import shown
from imgcls.config.training import TrainConfig
from imgcls.data.module import Place
from imgcls.engine.ranks import single_job
from imgcls.engine.run_directory import claim
from imgcls.engine.signals import SIGNALS
from imgcls.errors import UserError
from imgcls.processes import rank
from imgcls.runs.checkpoints import load_tensors
from imgcls.runs.read import curves, read_run
from imgcls.runs.record import rerooted
from imgcls.runs.run_files import differences, read_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReproduceConfig:
    """Keys of conf/reproduce.yaml."""

    run: Place
    out: Place


def main(config: ReproduceConfig, run_dir: Path) -> None:
    """Trains with the config of a finished run, where it was started. Raises UserError if the result differs.
    Of its loggers only the CSV is kept: a sweep's record elsewhere gets no second run."""
    given = config.run
    original = Path(given).expanduser().absolute()
    if not (original / "config.yaml").is_file():
        raise UserError(f"run={given}: there is no run in it (no config.yaml); expected a run directory")
    if rank() == 0 and (run_dir / "config.yaml").exists():
        raise UserError(f"out={shown(run_dir)} holds a run already; give another folder")
    found = read_run(original)
    if found["status"] != "finished":
        raise UserError(f"run={given} is {found['status']} ({found['reason']}); expected one that finished")
    stored = read_config(original)
    if "recovery" not in stored:
        raise UserError(f"run={given} was made by another version of imgcls; check out its commit")
    say_changes(original)
    stored = rerooted(stored, stored["run_dir"], str(run_dir))
    stored |= {"resume": None, "overwrite": False, "logger": {}}
    stored["callbacks"].pop("pruning", None)  # would report to the search once more
    wanted, lock = TrainConfig.read(stored), claim(run_dir, overwrite=False, resuming=False)
    start = Path(stored["cwd"])  # relative paths in the config are from there
    try:
        with contextlib.chdir(start) if start.is_dir() else contextlib.nullcontext(), single_job():
            train.train(wanted, run_dir, None)
    finally:
        SIGNALS.restore()
        if lock is not None:
            lock.release()
    if rank() == 0:
        report(original, run_dir)


def say_changes(original: Path) -> None:
    """Warns of config values that were changed at a resume: from the start on, they make another training."""
    path = original / "environment.json"
    for entry in json.loads(path.read_text()).get("resumed", []) if path.is_file() else []:
        for line in entry.get("changed", []):
            words = "the run was changed on the way, at %s: %s; it is run with the last value"
            log.warning(words, entry["time"], line)


def report(original: Path, again: Path) -> None:
    """Says whether the result is the same, and how the circumstances differ; writes `reproduction.json`."""
    circumstances = {title: rows for title, rows in differences(original, again).items() if title != "config"}
    results = compared(original, again)
    record = {"original": str(original), "results": results, "circumstances": circumstances}
    (again / "reproduction.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
    for title, rows in circumstances.items():
        for name, before, now in (row for row in rows if row[0] not in ("command", "resumed")):
            log.warning("%s: %s was %s and is %s", title, name, before, now)
    for line in uncommitted(original, again):
        log.warning("git: %s", line)
    for what, lines in results.items():
        print(f"{what}: {'; '.join(lines) or 'the same, bit for bit'}")
    if different := [what for what, lines in results.items() if lines]:
        names = ", ".join(different)
        raise UserError(f"the result is not the same: {names} differ; {shown(again)} has the run")


def uncommitted(one: Path, other: Path) -> list[str]:
    """Returns how the uncommitted code of a run differs from that of another run, a line for each file."""
    before, now = (file_diffs(path / "git.diff") for path in (one, other))
    lines = []
    for name, text in before.items():
        if now.get(name) != text:
            state = "has changed since" if name in now else "is not there as git.diff has it"
            lines.append(f"{name.rpartition(' b/')[2]} {state}")
    git = json.loads((one / "environment.json").read_text()).get("git", {})
    return lines + [f"{name} was there, and is not in git.diff" for name in git.get("left_out", [])]


def file_diffs(path: Path) -> dict[str, str]:
    """Returns the parts of a git.diff by the names of the files; none where there is no such file."""
    text = path.read_text(errors="surrogateescape") if path.is_file() else ""
    return dict(part.split("\n", 1) for part in f"\n{text}".removesuffix("\n").split("\ndiff --git ")[1:])


def compared(one: Path, other: Path) -> dict[str, list[str]]:
    """Returns how far metrics and weights of two runs differ, by what was compared; speed is not."""
    out = {"metrics.csv": curve_differences(curves(one), curves(other))}
    if (one / "test" / "metrics.json").exists():
        before, now = (json.loads((path / "test" / "metrics.json").read_text()) for path in (one, other))
        names = [name for name in before if before[name] != now.get(name)]
        out["test metrics"] = [f"{name} was {before[name]} and is {now.get(name)}" for name in names]
    for name in ("best.ckpt", "last.ckpt"):
        first, second = (path / "checkpoints" / name for path in (one, other))
        if first.exists() and second.exists():
            out[name] = weight_differences(first, second)
        else:
            log.warning("%s is not in both run directories, and is not compared", name)
    return out


def curve_differences(before: pd.DataFrame, now: pd.DataFrame) -> list[str]:
    """Returns which columns of two metrics.csv differ, from which epoch on, and how far at most."""
    a, b = (table.drop(columns=["images_per_second", "seconds"], errors="ignore") for table in (before, now))
    if a.shape != b.shape or list(a) != list(b):
        return [f"has {len(a)} epochs and {a.shape[1]} columns, and now {len(b)} and {b.shape[1]}"]
    differs = (a != b) & ~(a.isna() & b.isna())
    lines = []
    for name in differs.columns[differs.any()]:
        first, most = a["epoch"][differs[name].argmax()], (a[name] - b[name]).abs().max()
        lines.append(f"{name} from epoch {first} on, by up to {most:.3g}")
    return lines


def weight_differences(before: Path, now: Path) -> list[str]:
    """Returns how many tensors of two checkpoints differ, and how far at most."""
    a, b = (load_tensors(path)["state_dict"] for path in (before, now))
    if {name: tensor.shape for name, tensor in a.items()} != {n: tensor.shape for n, tensor in b.items()}:
        return ["it has weights of other names or shapes"]
    pairs = [(tensor, b[name]) for name, tensor in a.items() if not torch.equal(tensor, b[name])]
    gaps = [(one.double() - other.double()).abs().max().item() for one, other in pairs]
    return [f"{len(gaps)} of {len(a)} tensors, by up to {max(gaps):.3g}"] if gaps else []
