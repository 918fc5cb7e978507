"""Loggers: a CSV with one row an epoch, and Weights & Biases that never asks and never stops a run."""

import logging
import netrc
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imgcls.errors import UserError
from imgcls.loggers.unharmed import failed, unharmed

log = logging.getLogger(__name__)
UPLOAD = 600.0  # seconds that the upload of a checkpoint may take at the end


def wandb_logger(
    save_dir: str,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    timeout: float = 6.0,
    finish_timeout: float = 8.0,
    log_model: bool = False,
    **options: Any,
) -> Logger:
    """Returns the logger of Weights & Biases, its run begun.

    Args:
        mode: "auto": what WANDB_MODE says, else online where there is a key, else offline.
        timeout: seconds to wait for the server before the run goes on offline.
        finish_timeout: seconds to wait at the end for what is not uploaded yet; with `log_model` at least 600.
        log_model: keep the best checkpoint as an artifact of the run.
        options: to `wandb.init`: project, group, name, tags, notes, job_type, id, resume.
    """
    import wandb

    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE", "")
        mode = chosen if chosen in ("online", "offline", "disabled") else "online" if has_key() else "offline"  # type: ignore[assignment]
    unknown = set(options) - {
        "project",
        "group",
        "name",
        "tags",
        "notes",
        "job_type",
        "id",
        "resume",
        "entity",
    }
    if unknown:
        raise UserError(
            f"logger.wandb.{min(unknown)}: expected project, entity, group, name, tags, notes, job_type, id or resume"
        )
    if getattr(rank_zero_only, "rank", 0) != 0:
        return WandbLogger(save_dir=save_dir)
    before = Path(save_dir) / "wandb" / "latest-run"
    if before.exists():  # the run goes on
        options = {"id": before.resolve().name.rpartition("-")[2], "resume": "allow", **options}
    patience = max(finish_timeout, UPLOAD) if log_model else finish_timeout
    settings = wandb.Settings(
        init_timeout=timeout, finish_timeout=patience, finish_timeout_raises=True, silent=True
    )
    if (
        "wandb.sdk.launch" not in sys.modules
    ):  # then there are no inputs of W&B Launch: to look would import it, 0.7 s
        wandb.Run._detect_and_apply_job_inputs = lambda run: None  # type: ignore
    begin: Any = partial(wandb.init, dir=save_dir, settings=settings, reinit="finish_previous", **options)
    for attempt, otherwise in {mode: "offline", "offline": "disabled"}.items():
        try:
            run = begin(mode=attempt)
            break
        except Exception as error:  # of many types: no network, a key that is none, a full disk
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("Weights & Biases: %s; logging to it goes on %s", reason, otherwise)
    else:
        run = begin(mode="disabled")
    with suppress(
        AttributeError
    ):  # else each import of pandas or the like speaks to a process that may be gone
        run._unregister_telemetry_import_hooks(run.id)
    with unharmed():
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    logger = WandbLogger(save_dir=save_dir, experiment=run)
    logger.keeps_best = log_model  # type: ignore[attr-defined]  # Lightning's own log_model refuses to be offline
    return logger


def close_wandb(status: int, word: str, preempted: bool = False) -> None:
    """Ends the W&B run, if there is one, with its status: without a code a failed run would show as finished.

    W&B's agent starts a `preempted` run again."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is not None:
        with unharmed():
            run.summary["status"] = word
            if word == "pruned":
                run.tags = (*run.tags, word)
            if preempted:
                run.mark_preempting()
            run.finish(exit_code=status)
    if "WandbLogger" in failed:
        with suppress(Exception):  # or its process is looked for again when this one ends
            sys.modules["wandb"].teardown(status)


def log_checkpoint(run: Any, path: str) -> None:
    """Keeps a checkpoint as the artifact `<id of the run>-best`."""
    import wandb

    artifact = wandb.Artifact(f"{run.id}-best", type="model")
    artifact.add_file(path)
    run.log_artifact(artifact, aliases=["best"])


def has_key() -> bool:
    """Whether credentials are at hand; never asks for them and never talks to the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any(
            entry is not None
            for entry in (
                netrc.netrc().authenticators(host) for host in netrc.netrc().hosts if "wandb" in host
            )
        )
    except (OSError, netrc.NetrcParseError):
        return False
