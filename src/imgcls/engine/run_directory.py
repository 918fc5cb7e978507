"""The run directory: one process takes it, and begins the run, begins it over, or goes on with it."""

import json
import logging
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from imgcls.config.check import locate, nodes
from imgcls.config.paths import shown
from imgcls.config.words import renamed
from imgcls.errors import InUse, UserError, nearest
from imgcls.processes import rank
from imgcls.runs.record import rerooted, write_text

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)
USED = ("checkpoints", "test", "metrics.csv")
# What a run that is begun over removes; the config goes first: without one, no run is there
OWN = ("config.yaml", *USED, "status.json", "nonfinite.txt", "unreadable.csv", "wandb")
RECORDED = ("run_dir", "cwd", "names", "job", "git")  # keys that are written when a run starts
WITH_STATE = ("backbone.", "optimizer.", "scheduler.")  # groups whose state is in the checkpoint


def claim(run_dir: Path, overwrite: bool, resuming: bool) -> FileLock | None:
    """Makes the run directory this process's own until it ends; returns the lock, on rank 0. Raises InUse:
    another process has it. Raises UserError: it holds a run that this one neither resumes nor overwrites."""
    if rank():
        return None
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        advice = "wait for its end, or give another hydra.run.dir=…"
        raise InUse(f"{shown(run_dir)} is in use by another process; {advice}") from None
    used = any((run_dir / name).exists() for name in USED)
    if used and overwrite:
        for path in (run_dir / name for name in OWN):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    elif used and not resuming:
        lock.release()
        others = "start over with overwrite=true, or give another folder as hydra.run.dir=…"
        place = shown(run_dir)
        raise UserError(f"{place} holds a run already; go on with it by resume={place}, {others}")
    return lock


def how_to_go_on(run_dir: Path) -> str:
    """Returns the command with which a stopped run goes on: of a job of a sweep, first the sweep's."""
    alone, sweep = shlex.join(["imgcls", "train", f"resume={shown(run_dir)}"]), run_dir.parent / "sweep.yaml"
    try:
        command = yaml.safe_load(sweep.read_text())["go_on"]
    except (OSError, KeyError):
        return alone
    return f"{command} (this job alone: {alone})"


def finished(run_dir: Path, config: dict[str, Any]) -> bool:
    """Returns whether the run came to its end, and `config` asks for no more training than it had."""
    path = run_dir / "status.json"
    if not path.is_file() or json.loads(path.read_text())["status"] != "finished":
        return False
    own = rerooted(yaml.safe_load((run_dir / "config.yaml").read_text()), config["run_dir"], str(run_dir))
    return bool(own["trainer"] == config["trainer"])


def newest_whole(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint, if there is one; renames those that are damaged, so that they
    replace none that is whole. Raises UserError: there is none but damaged ones."""
    from imgcls.runs.checkpoints import damage, newest

    found, wrong = newest(folder)
    wrong.pop(folder / "last.partial", None)  # the process was killed while it wrote
    reasons = [f"{shown(path)} is damaged ({reason})" for path, reason in wrong.items()]
    if found is None and wrong:
        weights = f"backbone.weights={shown(folder / 'best.ckpt')}"
        advice = f"start over with overwrite=true, or a new run from {weights}"
        raise UserError(f"{reasons[-1]}, and there is none before it; {advice}")
    if found is None:
        log.info("%s has no checkpoint yet: the run begins anew", shown(folder.parent))
        return None
    if rank() == 0:
        for path, reason in zip(wrong, reasons, strict=True):
            log.warning("%s; it is %s.damaged now, and the one before it is taken", reason, path.name)
            path.replace(path.with_name(f"{path.name}.damaged"))
    if found.suffix != ".partial":
        return found
    last = found.with_name("last.ckpt")  # the process was killed before it could give that name
    if rank() == 0:
        if last.exists() and damage(last) is not None:
            last.replace(last.with_name("last.ckpt.damaged"))
        put_in_place(found, last)
    return last


def put_in_place(partial: Path, path: Path) -> None:
    """Gives a whole file its name; a `last.ckpt` of before becomes `previous.ckpt`."""
    if path.name == "last.ckpt" and path.exists():
        path.replace(path.with_name("previous.ckpt"))
    partial.replace(path)


def resumed(config: dict[str, Any], run_dir: Path, changed: list[str]) -> dict[str, Any]:
    """Returns the config to run. With resume=RUN_DIR the overrides that this command has `changed` are put
    into the run's own config; with resume=auto the command is the run's own."""
    wanted, path = config["resume"], run_dir / "config.yaml"
    config = {**config, "resume": None}
    if wanted is None or (wanted == "auto" and not path.is_file()):
        return config
    try:
        own = yaml.safe_load(path.read_text())
        own["run_dir"], own["trainer"]["max_epochs"]
    except (yaml.YAMLError, TypeError, KeyError) as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())
        what = f"{shown(run_dir)}/config.yaml is no config of a run ({reason})"
        raise UserError(f"{what}; mend it, or start a new run") from error
    own = rerooted(own, own["run_dir"], str(run_dir)) | {"resume": None, "overwrite": False}
    try:
        if "recovery" not in own:
            raise UserError("its config has no recovery")
        for place, node in nodes(own, ""):
            if str(node.get("_target_", "")).startswith("imgcls."):
                locate(node["_target_"], f"{place}._target_")
    except UserError as error:
        what = f"{shown(run_dir)} was begun by another version of imgcls ({error})"
        advice = f"start a new run from backbone.weights={shown(run_dir / 'checkpoints' / 'best.ckpt')}"
        raise UserError(f"{what}; {advice}") from error
    if wanted != "auto":
        for override in changed:
            put(own, config, override)
    return own


def put(own: dict[str, Any], composed: dict[str, Any], override: str) -> None:
    """Puts an override into the run's own config; UserError where it does not fit or comes too late."""
    override = override.lstrip("+")
    key = override.partition("=")[0].lstrip("~")
    *path, name = key.split(".")
    if key in ("resume", "overwrite", "local") or path[:1] == ["hydra"]:
        return
    node = own
    for part in path:
        node, composed = node.get(part) or {}, composed.get(part) or {}
    if key in ("data", "scheduler") and own[key]["_target_"] == composed[key]["_target_"]:
        return  # named again, so that Hydra knows the keys of the run's own choice
    if name not in node and path:
        raise UserError(f"{key}: the run has no such key; {renamed(key) or nearest(name, node)}")
    if name not in node or isinstance(node[name], dict) or name not in composed:
        raise UserError(f"{override}: resume= takes a run as it is; only single values of it can be changed")
    check_change(own, key, override)
    node[name] = composed[name]


def check_change(own: dict[str, Any], key: str, override: str) -> None:
    """Raises UserError for an override of a key that a run can't change on its way."""
    if key.startswith(WITH_STATE) and key != "optimizer.lr":
        advice = "of this, optimizer.lr alone can be changed on the way"
        raise UserError(f"{override}: the checkpoint has its state; {advice}")
    if key.split(".")[0] in RECORDED:
        raise UserError(f"{override}: the run's record has it from its start; leave it out")
    if key in ("seed", "optimized_metric"):
        advice = "and its record would be wrong; start a new run"
        raise UserError(f"{override}: the run began with {own[key]}, {advice}")
    moves_end = key in ("trainer.max_epochs", "trainer.max_steps")
    if moves_end and own["scheduler"]["_target_"].endswith("one_cycle"):
        raise UserError(f"{override}: scheduler=one_cycle has its end in the checkpoint; it can't be moved")


def changes(before: Any, now: Any, key: str = "") -> list[str]:
    """Returns what differs between two configs, as `key: before → now`."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [f"{key}: {before} → {now}"]
    lines: list[str] = []
    for name in {**before, **now}:
        if key or name not in ("resume", "overwrite", "git"):
            lines += changes(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    return lines


def check_data(run_dir: Path, now: dict[str, Any]) -> None:
    """Raises UserError where the data is not what the run began with."""
    path = run_dir / "environment.json"
    before = json.loads(path.read_text()).get("data") if path.is_file() else None
    if before is not None and before != json.loads(json.dumps(now)):
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        what = f"the data is not what this run began with ({', '.join(sorted(changed))} differ)"
        best = shown(run_dir / "checkpoints" / "best.ckpt")
        raise UserError(f"{what}; bring it back, or start a new run from backbone.weights={best}")


def check_progress(checkpoint: Path, trainer: "Trainer") -> None:
    """Raises UserError where the run is past the end it is given, or within an epoch of other processes."""
    from imgcls.runs.checkpoints import load_content

    content = load_content(checkpoint)
    begun, processes = content["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"], trainer.world_size
    for key, done in (("max_epochs", begun), ("max_steps", content["global_step"])):
        given = getattr(trainer, key)
        if 0 <= given < done:
            advice = "give as much, or more"
            raise UserError(f"trainer.{key}={given}: the run has come to {done} already; {advice}")
    before = len(content.get("within_epoch", {}).get("metrics", range(processes)))
    if before != processes:
        what = "the checkpoint is from within an epoch, and the number of its processes is"
        advice = "go on with as many, and change it after an epoch's end"
        raise UserError(f"trainer.devices: {what} {before}, here {processes}; {advice}")


def note_change(run_dir: Path, config: dict[str, Any], resumed_from: Path | None) -> None:
    """Adds to environment.json when and by which command the run went on, and what its config changed."""
    path, before = run_dir / "environment.json", run_dir / "config.yaml"
    old = yaml.safe_load(before.read_text()) if before.is_file() else config
    changed = changes(rerooted(old, old["run_dir"], str(run_dir)), config)
    if resumed_from is None and not changed:
        return
    record = json.loads(path.read_text()) if path.is_file() else {}
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    entry: dict[str, Any] = {"command": shlex.join(sys.orig_argv), "time": now}
    entry |= {"from": resumed_from.name} if resumed_from is not None else {}
    entry |= {"changed": changed} if changed else {}
    write_text(path, json.dumps(record | {"resumed": [*record.get("resumed", []), entry]}, indent=2) + "\n")
