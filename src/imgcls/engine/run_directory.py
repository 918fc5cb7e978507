"""The run directory: one process takes it, begins it over, or finds the checkpoint to go on from."""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from imgcls.config.paths import shown
from imgcls.errors import InUse, UserError
from imgcls.processes import rank
from imgcls.runs.record import rerooted

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger(__name__)
USED = ("checkpoints", "test", "metrics.csv")
# What a run that is begun over removes; the config goes first: without one, no run is there
OWN = ("config.yaml", *USED, "status.json", "nonfinite.txt", "unreadable.csv", "wandb")


def claim(run_dir: Path, overwrite: bool, resuming: bool) -> "FileLock | None":
    """Makes the run directory this process's own until it ends; returns the lock, on rank 0.

    Raises:
        InUse: another process has it.
        UserError: it holds a run that this one neither resumes nor overwrites.
    """
    from filelock import FileLock, Timeout

    if rank():
        return None
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InUse(
            f"{shown(run_dir)} is in use by another process; wait for its end, or give another "
            "hydra.run.dir=…"
        ) from None
    used = any((run_dir / name).exists() for name in USED)
    if used and overwrite:
        for path in (run_dir / name for name in OWN):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    elif used and not resuming:
        lock.release()
        raise UserError(
            f"{shown(run_dir)} holds a run already; go on with it by resume={shown(run_dir)}, start over "
            "with overwrite=true, or give another folder as hydra.run.dir=…"
        )
    return lock


def finished(run_dir: Path, config: dict[str, Any]) -> bool:
    """Returns whether the run came to its end, and `config` asks for no more training than it had."""
    path = run_dir / "status.json"
    if not path.is_file() or json.loads(path.read_text())["status"] != "finished":
        return False
    own = rerooted(yaml.safe_load((run_dir / "config.yaml").read_text()), config["run_dir"], str(run_dir))
    return bool(own["trainer"] == config["trainer"])


def newest_whole(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint, if there is one; renames those that are damaged, so that they
    replace none that is whole.

    Raises:
        UserError: there is none but damaged ones.
    """
    from imgcls.runs.checkpoints import newest

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
        return None
    if rank() == 0:
        for path, reason in zip(wrong, reasons, strict=True):
            log.warning("%s; it is %s.damaged now, and the one before it is taken", reason, path.name)
            path.replace(path.with_name(f"{path.name}.damaged"))
    return take_partial(found) if found.suffix == ".partial" else found


def take_partial(partial: Path) -> Path:
    """Gives a `last.partial`, which is whole, the name that the process was killed before it could give."""
    from imgcls.engine.checkpoint import put_in_place
    from imgcls.runs.checkpoints import damage

    last = partial.with_name("last.ckpt")
    if rank() == 0:
        if last.exists() and damage(last) is not None:
            last.replace(last.with_name("last.ckpt.damaged"))
        put_in_place(partial, last)
    return last
