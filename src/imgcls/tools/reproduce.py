"""imgcls reproduce: a run once more, and whether metrics and weights are the same, bit for bit."""

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from imgcls.commands.verb import verb
from imgcls.config.paths import shown
from imgcls.config.training import TrainConfig
from imgcls.errors import UserError
from imgcls.runs.record import rerooted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReproduceConfig:
    """Keys of conf/reproduce.yaml."""

    run: str
    out: str


@verb("reproduce", ReproduceConfig)
def main(config: ReproduceConfig, run_dir: Path) -> None:
    """Trains with the config of a finished run, where it was started, and compares. Of its loggers only the CSV is
    kept: a sweep's record elsewhere gets no second run. Raises UserError where the result differs."""
    given = config.run
    from imgcls.commands import train
    from imgcls.engine.ranks import single_job
    from imgcls.engine.resume import claim
    from imgcls.engine.signals import SIGNALS
    from imgcls.processes import rank
    from imgcls.runs import read as runs

    original = Path(given).expanduser().absolute()
    if not (original / "config.yaml").is_file():
        raise UserError(f"run={given}: there is no run in it (no config.yaml); expected a run directory")
    if rank() == 0 and (run_dir / "config.yaml").exists():
        raise UserError(f"out={shown(run_dir)} holds a run already; give another folder")
    found = runs.read_run(original)
    if found["status"] != "finished":
        raise UserError(f"run={given} is {found['status']} ({found['reason']}); expected one that finished")
    say_changes(original)
    stored = runs.read_config(original)
    stored = rerooted(stored, stored["run_dir"], str(run_dir)) | {"resume": None, "overwrite": False}
    stored["logger"] = {}
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
    """Says what of the run's config was another before a resume: from the start on, that is another training."""
    path = original / "environment.json"
    for entry in json.loads(path.read_text()).get("resumed", []) if path.is_file() else []:
        for line in entry.get("changed", []):
            log.warning(
                "the run was changed on the way, at %s: %s; it is run with the last value",
                entry["time"],
                line,
            )


def report(original: Path, again: Path) -> None:
    """Says whether the result is the same, and how the circumstances differ; writes `reproduction.json`."""
    from imgcls.runs import read as runs

    circumstances = {
        title: rows for title, rows in runs.differences(original, again).items() if title != "config"
    }
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
        raise UserError(
            f"the result is not the same: {', '.join(different)} differ; {shown(again)} has the run"
        )


def uncommitted(one: Path, other: Path) -> list[str]:
    """Returns what of the code that a run was made of, and that was not committed, another run was not made of."""

    def diffs(path: Path) -> dict[str, str]:
        text = path.read_text(errors="surrogateescape") if path.is_file() else ""
        return dict(part.split("\n", 1) for part in f"\n{text}".removesuffix("\n").split("\ndiff --git ")[1:])

    before, now = (diffs(path / "git.diff") for path in (one, other))
    files = [
        (name.rpartition(" b/")[2], name in now) for name, text in before.items() if now.get(name) != text
    ]
    lines = [
        f"{file} {'has changed since' if there else 'is not there as git.diff has it'}"
        for file, there in files
    ]
    git = json.loads((one / "environment.json").read_text()).get("git", {})
    return lines + [f"{name} was there, and is not in git.diff" for name in git.get("left_out", [])]


def compared(one: Path, other: Path) -> dict[str, list[str]]:
    """Returns how far metrics and weights of two runs differ, by what was compared; speed is not."""
    import torch

    from imgcls.runs.checkpoints import load_tensors
    from imgcls.runs.read import curves

    out = {}
    a, b = (curves(path).drop(columns="images_per_second", errors="ignore") for path in (one, other))
    if a.shape != b.shape or list(a) != list(b):
        out["metrics.csv"] = [
            f"has {len(a)} epochs and {a.shape[1]} columns, and now {len(b)} and {b.shape[1]}"
        ]
    else:
        off = (a != b) & ~(a.isna() & b.isna())
        far = {n: (a["epoch"][off[n].argmax()], (a[n] - b[n]).abs().max()) for n in a if off[n].any()}
        out["metrics.csv"] = [
            f"{name} from epoch {first} on, by up to {most:.3g}" for name, (first, most) in far.items()
        ]
    if (one / "test" / "metrics.json").exists():
        x, y = (json.loads((path / "test" / "metrics.json").read_text()) for path in (one, other))
        out["test metrics"] = [f"{n} was {v} and is {y.get(n)}" for n, v in x.items() if v != y.get(n)]
    for name in ("best.ckpt", "last.ckpt"):
        paths = [path / "checkpoints" / name for path in (one, other)]
        if not all(path.exists() for path in paths):
            log.warning("%s is not in both run directories, and is not compared", name)
            continue
        u, v = (load_tensors(path)["state_dict"] for path in paths)
        if {key: w.shape for key, w in u.items()} != {key: w.shape for key, w in v.items()}:
            out[name] = ["it has weights of other names or shapes"]
            continue
        gaps = [(u[k].double() - v[k].double()).abs().max().item() for k in u if not torch.equal(u[k], v[k])]
        out[name] = [f"{len(gaps)} of {len(u)} tensors, by up to {max(gaps):.3g}"] if gaps else []
    return out
