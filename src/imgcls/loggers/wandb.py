"""Weights & Biases logger: begins a run that never asks for a key nor stops a training, and closes it."""

import logging
import netrc
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import loggers as lightnings
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imgcls.errors import UserError
from imgcls.loggers.unharmed import has_failed, unharmed

log = logging.getLogger(__name__)
UPLOAD = 600.0  # seconds that the upload of a checkpoint may take at the end
MODES = ("online", "offline", "disabled")
OPTIONS = ("project", "entity", "group", "name", "tags", "notes", "job_type", "id", "resume")


class WandbLogger(lightnings.WandbLogger):
    """W&B's logger, which adds to each value of the metric that it follows the best one until then, as
    `best/…`. That is what W&B's own search optimises, and ends trials by."""

    followed = ""
    mode: Literal["min", "max"] = "max"
    best: float | None = None

    def follow(self, metric: str, mode: Literal["min", "max"], best: float | None) -> None:
        """Follows a metric; a run that goes on had a `best` value before."""
        self.followed, self.mode, self.best = metric, mode, best

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.followed in metrics:
            values = [float(metrics[self.followed]), *([] if self.best is None else [self.best])]
            self.best = min(values) if self.mode == "min" else max(values)
            metrics = {**metrics, f"best/{self.followed}": self.best}
        super().log_metrics(metrics, step)


def wandb_logger(
    save_dir: str,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    timeout: float = 6.0,
    finish_timeout: float = 8.0,
    log_model: bool = False,
    **options: Any,
) -> Logger:
    """Returns the logger of Weights & Biases; its run has begun.

    Args:
        mode: "auto": what WANDB_MODE says, else online if there is a key, else offline.
        timeout: seconds to wait for the server before the run goes on offline.
        finish_timeout: seconds to wait at the end for uploads; with `log_model` at least 600.
        log_model: keep the best checkpoint as an artifact of the run.
        options: to `wandb.init`, those in OPTIONS.
    """
    if unknown := set(options) - set(OPTIONS):
        raise UserError(f"logger.wandb.{min(unknown)}: expected {', '.join(OPTIONS[:-1])} or {OPTIONS[-1]}")
    if options.get("name") is not None:
        options["name"] = str(options["name"])  # names.run=12
    given = options.get("tags") or []  # some of them a list, that of the run's own tags
    options["tags"] = [str(one) for tag in given for one in (tag if isinstance(tag, list) else [tag])]
    if getattr(rank_zero_only, "rank", 0) != 0:
        return WandbLogger(save_dir=save_dir)
    import wandb

    from imgcls.loggers.private import leave_out_job_inputs, remove_import_hooks

    before = Path(save_dir) / "wandb" / "latest-run"
    if before.exists():  # the run goes on
        options = {"id": before.resolve().name.rpartition("-")[2], "resume": "allow", **options}
    patience = max(finish_timeout, UPLOAD) if log_model else finish_timeout
    settings = wandb.Settings(
        init_timeout=timeout, finish_timeout=patience, finish_timeout_raises=True, silent=True
    )
    leave_out_job_inputs()
    begin = partial(wandb.init, dir=save_dir, settings=settings, reinit="finish_previous", **options)
    wanted = os.environ.get("WANDB_MODE", "") if mode == "auto" else mode
    if wanted not in MODES:
        wanted = "online" if has_key() else "offline"
    run = begun(begin, wanted)
    remove_import_hooks(run)
    logger = WandbLogger(save_dir=save_dir, experiment=run)
    with unharmed(logger):
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    logger.keeps_best = log_model  # type: ignore[attr-defined]  # Lightning's log_model refuses to be offline
    return logger


def begun(begin: Callable[..., Any], mode: str) -> Any:
    """Begins a run with a mode; if that fails, offline; if that fails too, disabled."""
    for attempt, otherwise in {mode: "offline", "offline": "disabled"}.items():
        try:
            return begin(mode=attempt)
        except Exception as error:  # of many types: no network, a key that is none, a full disk
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("Weights & Biases: %s; logging to it goes on %s", reason, otherwise)
    return begin(mode="disabled")


def close_wandb(loggers: Iterable[Logger], status: int, word: str, preempted: bool = False) -> None:
    """Ends the W&B run, if there is one, with an exit code: without it a failed run would show as finished.
    `word` is of the run's status.json, such as "pruned"; W&B's agent starts a `preempted` run again."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None:
        return
    own = [logger for logger in loggers if isinstance(logger, lightnings.WandbLogger)]
    logger = own[0] if own else WandbLogger(experiment=run)
    with unharmed(logger):
        run.summary["status"] = word
        if word == "pruned":
            run.tags = (*run.tags, word)
        if preempted:
            run.mark_preempting()
        run.finish(exit_code=status)
    if has_failed(logger):
        with suppress(Exception):  # or its process is looked for again when this one ends
            sys.modules["wandb"].teardown(status)


def log_checkpoint(run: Any, path: str) -> None:
    """Keeps a checkpoint as the artifact `<id of the run>-best`."""
    run.log_artifact(path, name=f"{run.id}-best", type="model", aliases=["best"])


def has_key() -> bool:
    """Tells whether there are credentials; never asks for them and never talks to the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
