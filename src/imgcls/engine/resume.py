"""Resume: which config a run goes on with, whether it can, and the record of what has changed."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from imgcls.config.paths import shown
from imgcls.errors import UserError, nearest
from imgcls.runs.record import rerooted, write_text

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

RECORDED = ("run_dir", "cwd", "names", "job", "git")  # keys that are written when a run starts
WITH_STATE = ("backbone.", "optimizer.", "scheduler.")  # groups whose state is in the checkpoint


def resumed(config: dict[str, Any], run_dir: Path, changed: list[str]) -> dict[str, Any]:
    """Returns the config to run.

    Args:
        changed: the overrides of this command. With resume=RUN_DIR they are put into the run's own config;
            with resume=auto the command is the run's own.
    """
    wanted = config["resume"]
    config = {**config, "resume": None}
    if wanted is None:
        return config
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
    """Puts one override of the command line into the run's own config.

    Raises:
        UserError: the run has no such key, or went too far with its value.
    """
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
        raise UserError(f"{key}: the run has no such key; {nearest(name, node)}")
    if name not in node or isinstance(node[name], dict) or name not in composed:
        raise UserError(f"{override}: resume= takes a run as it is; only single values of it can be changed")
    check_change(own, key, override)
    node[name] = composed[name]


def check_change(own: dict[str, Any], key: str, override: str) -> None:
    """Raises UserError for an override of a key that a run can't change on its way."""
    if key.startswith(WITH_STATE) and key != "optimizer.lr":
        raise UserError(
            f"{override}: the checkpoint has its state; of this, optimizer.lr alone can be changed on the way"
        )
    if key.split(".")[0] in RECORDED:
        raise UserError(f"{override}: the run's record has it from its start; leave it out")
    if key in ("seed", "optimized_metric"):
        raise UserError(
            f"{override}: the run began with {own[key]}, and its record would be wrong; start a new run"
        )
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
        raise UserError(
            f"the data is not what this run began with ({', '.join(sorted(changed))} differ); bring it back, "
            f"or start a new run from backbone.weights={shown(run_dir / 'checkpoints' / 'best.ckpt')}"
        )


def check_progress(checkpoint: Path, trainer: "Trainer") -> None:
    """Raises UserError where the run is past the end it is given, or within an epoch of other processes."""
    from imgcls.runs.checkpoints import load_content

    content = load_content(checkpoint)
    begun, processes = content["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"], trainer.world_size
    for key, done in (("max_epochs", begun), ("max_steps", content["global_step"])):
        given = getattr(trainer, key)
        if 0 <= given < done:
            raise UserError(
                f"trainer.{key}={given}: the run has come to {done} already; give as much, or more"
            )
    before = len(content.get("within_epoch", {}).get("metrics", range(processes)))
    if before != processes:
        raise UserError(
            "trainer.devices: the checkpoint is from within an epoch, and the number of its processes is "
            f"{before}, here {processes}; go on with as many, and change it after an epoch's end"
        )


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
    if resumed_from is not None:
        entry["from"] = resumed_from.name
    if changed:
        entry["changed"] = changed
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
