"""Going on with a run in its own directory, from what it left there."""

import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from imgcls.config.paths import hydra_quoted, shown
from imgcls.errors import InUse, UserError, nearest
from imgcls.processes import rank
from imgcls.runs.record import rerooted, write_text

log = logging.getLogger(__name__)
USED = ("checkpoints", "test", "metrics.csv")
# Of a run that is begun over; the config goes first: without one, no run is there
OWN = ("config.yaml", *USED, "status.json", "nonfinite.txt", "unreadable.csv", "wandb")


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Returns a command line for which Hydra works in the directory of `resume=RUN_DIR`, leaves its record alone, and
    takes keys of the run's own choices; and which names the sweep that `-m` alone is.

    Raises:
        UserError: there is no run in it; or of ranks that torchrun or srun started, each would make a directory.
    """
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("WORLD_SIZE") or 1)
    bare = [a.lstrip("+") for a in arguments]
    if started > 1 and not any(a.startswith(("hydra.run.dir=", "resume=")) for a in bare):
        raise UserError(
            f"{started} processes were started for one run: give all of them one folder, hydra.run.dir=…"
        )
    many = "-m" in arguments or "--multirun" in arguments
    if not many:
        refuse_sweep(arguments)
    if (
        many
        and any(a.startswith("sweep.") for a in arguments)
        and not any(a.startswith("sweep=") for a in arguments)
    ):
        arguments = [*arguments, "sweep=grid"]
    given = [a.partition("=")[2] for a in bare if a.startswith("resume=")]
    given = [path[1:-1].replace("\\'", "'") if path[:1] in ("'", '"') else path for path in given]
    if not given or given[-1] in ("", "null", "auto"):
        return arguments
    if many:
        raise UserError(f"resume={given[-1]} goes on with one run; for the runs of a sweep give resume=auto")
    folder = Path(given[-1]).expanduser()
    check_place(given[-1], folder)
    of_a_choice = re.compile(
        r"(?!hydra\.)\w+\.[\w.]+="
    )  # that Hydra may not compose here; `put` knows the run's keys
    arguments = [f"++{a}" if of_a_choice.match(a) else a for a in arguments]
    return [*arguments, f"hydra.run.dir={hydra_quoted(str(folder.absolute()))}", "hydra.output_subdir=null"]


def refuse_sweep(arguments: list[str]) -> None:
    """Raises UserError where a command line without -m names a sweep: Hydra would train once and say nothing."""
    keys = {argument.partition("=")[0] for argument in arguments}
    if keys & {"-c", "--cfg", "-i", "--info", "-h", "--help", "hydra.mode"}:
        return
    for argument in arguments:
        if argument.startswith(("sweep=", "sweep.")) and argument != "sweep=null":
            command = shlex.join(["imgcls", "train", "-m", *arguments[1:]])
            raise UserError(f"{argument}: a sweep needs -m; write {command}")


def resumed(config: dict[str, Any], run_dir: Path, changed: list[str]) -> dict[str, Any]:
    """Returns the config to run.

    Args:
        changed: the overrides of this command. With resume=RUN_DIR they are put into the run's own config; with
            resume=auto the command is the run's own.
    """
    wanted = config["resume"]
    config = {**config, "resume": None}
    if wanted is None:
        return config
    check_place(wanted, run_dir)
    if wanted == "auto" and not (run_dir / "config.yaml").is_file():
        return config
    try:
        own = yaml.safe_load((run_dir / "config.yaml").read_text())
        own["run_dir"], own["trainer"]["max_epochs"]
    except (yaml.YAMLError, TypeError, KeyError) as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())
        raise UserError(
            f"{shown(run_dir)}/config.yaml is no config of a run ({reason}); mend it, or start a new run"
        ) from error
    own = rerooted(own, own["run_dir"], str(run_dir)) | {"resume": None, "overwrite": False}
    if wanted != "auto":
        for override in changed:
            put(own, config, override)
    return own


def put(own: dict[str, Any], composed: dict[str, Any], override: str) -> None:
    """Puts one override of the command line into the run's own config."""
    override = override.lstrip("+")
    key = override.partition("=")[0].lstrip("~")
    if key in ("resume", "overwrite", "local") or key.startswith("hydra."):
        return
    *path, name = key.split(".")
    whole = own
    for part in path:
        own, composed = own.get(part) or {}, composed.get(part) or {}
    if not path and key in ("data", "scheduler") and own[key]["_target_"] == composed[key]["_target_"]:
        return  # named again, so that Hydra knows the keys of the run's own choice
    if name not in own and path:
        raise UserError(f"{key}: the run has no such key; {nearest(name, own)}")
    if name not in own or isinstance(own[name], dict) or name not in composed:
        raise UserError(f"{override}: resume= takes a run as it is; only single values of it can be changed")
    if path and key != "optimizer.lr" and key.startswith(("backbone.", "optimizer.", "scheduler.")):
        raise UserError(
            f"{override}: the checkpoint has its state; of this, optimizer.lr alone can be changed on the way"
        )
    if key.split(".")[0] in ("run_dir", "cwd", "names", "job", "git"):
        raise UserError(f"{override}: the run's record has it from its start; leave it out")
    if key in ("seed", "optimized_metric"):
        raise UserError(
            f"{override}: the run began with {own[key]}, and its record would be wrong; start a new run"
        )
    if key in ("trainer.max_epochs", "trainer.max_steps") and whole["scheduler"]["_target_"].endswith(
        "one_cycle"
    ):
        raise UserError(f"{override}: scheduler=one_cycle has its end in the checkpoint; it can't be moved")
    own[name] = composed[name]


def newest_whole(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint to go on from, if there is one; names those that are damaged, and sets them
    aside, so that they replace none that is whole.

    Raises:
        UserError: there is none but damaged ones.
    """
    from imgcls.engine.checkpoint import put_in_place
    from imgcls.runs.checkpoints import damage, newest

    found, wrong = newest(folder)
    wrong.pop(folder / "last.partial", None)  # the process was killed while it wrote
    reasons = [f"{shown(path)} is damaged ({reason})" for path, reason in wrong.items()]
    if found is None and wrong:
        raise UserError(
            f"{reasons[-1]}, and there is none before it; start over with overwrite=true, or a new run from "
            f"backbone.weights={shown(folder / 'best.ckpt')}"
        )
    if found is None:
        log.info("%s has no checkpoint yet: the run begins anew", shown(folder.parent))
    for path, reason in zip(wrong, reasons, strict=True) if rank() == 0 else ():
        log.warning("%s; it is %s.damaged now, and the one before it is taken", reason, path.name)
        path.replace(path.with_name(f"{path.name}.damaged"))
    if found is None or found.suffix != ".partial":
        return found
    last = folder / "last.ckpt"
    if rank() == 0:
        if damage(last) is not None and last.exists():
            last.replace(last.with_name("last.ckpt.damaged"))
        put_in_place(found, last)
    return last


def claim(run_dir: Path, overwrite: bool, resuming: bool) -> Any:
    """Makes the run directory this process's own until it ends; returns the lock, on rank 0.

    Raises:
        InUse: another process has it.
        UserError: it holds a run that is not to be gone on with.
    """
    if rank():
        return None
    from filelock import FileLock, Timeout

    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InUse(
            f"{shown(run_dir)} is in use by another process; wait for its end, or give another hydra.run.dir=…"
        ) from None
    used = any((run_dir / name).exists() for name in USED)
    if used and overwrite:
        for name in OWN:
            path = run_dir / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    elif used and not resuming:
        lock.release()
        raise UserError(
            f"{shown(run_dir)} holds a run already; go on with it by resume={shown(run_dir)}, start over with "
            "overwrite=true, or give another folder as hydra.run.dir=…"
        )
    return lock


def finished(run_dir: Path, config: dict[str, Any]) -> bool:
    """Whether a run came to its end, and nothing was asked of it since that would be more."""
    path = run_dir / "status.json"
    if not path.is_file() or json.loads(path.read_text())["status"] != "finished":
        return False
    own = rerooted(yaml.safe_load((run_dir / "config.yaml").read_text()), config["run_dir"], str(run_dir))
    return bool(own["trainer"] == config["trainer"])


def changes(before: Any, now: Any, key: str = "") -> list[str]:
    """Returns what differs between two configs, as `key: before → now`."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [f"{key}: {before} → {now}"]
    names = [name for name in {**before, **now} if key or name not in ("resume", "overwrite", "git")]
    return [line for n in names for line in changes(before.get(n), now.get(n), f"{key}.{n}".lstrip("."))]


def check_data(run_dir: Path, now: dict[str, Any]) -> None:
    """Raises UserError where the data is not what the run began with."""
    path = run_dir / "environment.json"
    before = json.loads(path.read_text()).get("data") if path.is_file() else None
    if before is not None and before != json.loads(json.dumps(now)):
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        raise UserError(
            f"the data is not what this run began with ({', '.join(sorted(changed))} differ); bring it back, or start a "
            "new run from backbone.weights=" + shown(run_dir / "checkpoints" / "best.ckpt")
        )


def check_progress(checkpoint: Path, trainer: Any) -> None:
    """Raises UserError where the run has come further than it shall go, or other processes would go on in an epoch."""
    from imgcls.runs.checkpoints import load_content

    content = load_content(checkpoint)
    begun, processes = content["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"], trainer.world_size
    for key, done in (("max_epochs", begun), ("max_steps", content["global_step"])):
        if 0 <= getattr(trainer, key) < done:
            raise UserError(
                f"trainer.{key}={getattr(trainer, key)}: the run has come to {done} already; give as much, or more"
            )
    before = len(content.get("within_epoch", {}).get("metrics", range(processes)))
    if before != processes:
        raise UserError(
            f"trainer.devices: the checkpoint is from within an epoch, and the number of its processes is {before}, here "
            f"{processes}; go on with as many, and change it after an epoch's end"
        )


def note_change(run_dir: Path, config: dict[str, Any], resumed_from: Path | None) -> None:
    """Adds to environment.json when and how the run went on, and what of its config is another from there on."""
    path, before = run_dir / "environment.json", run_dir / "config.yaml"
    old = yaml.safe_load(before.read_text()) if before.is_file() else config
    changed = changes(rerooted(old, old["run_dir"], str(run_dir)), config)
    if resumed_from is None and not changed:
        return
    record = json.loads(path.read_text()) if path.is_file() else {}
    entry: dict[str, Any] = {
        "command": shlex.join(sys.orig_argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    entry |= ({"from": resumed_from.name} if resumed_from else {}) | ({"changed": changed} if changed else {})
    write_text(path, json.dumps(record | {"resumed": [*record.get("resumed", []), entry]}, indent=2) + "\n")


def check_place(wanted: str | None, run_dir: Path) -> None:
    """Raises UserError where `resume` names no run, or not the one that Hydra works in: a file has set it."""
    if wanted in (None, "auto"):
        return
    folder = Path(str(wanted)).expanduser()
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"resume={wanted}: there is no run in it (no config.yaml); expected a run directory, or auto"
        )
    if folder.resolve() != run_dir.resolve():
        raise UserError(
            f"resume={wanted}: a file can only set auto; give it on the command line of imgcls train"
        )
