"""Weights & Biases logger: begins a run that never asks for a key nor stops a training, and closes it."""

import json
import logging
import netrc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from lightning.pytorch import loggers as lightnings
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from imgcls.errors import UserError
from imgcls.loggers.rows import once
from imgcls.loggers.unharmed import call_within, has_failed, unharmed

log = logging.getLogger(__name__)
UPLOAD = 600.0  # seconds that the upload of a checkpoint may take at the end
MODES = ("online", "offline", "disabled")
OPTIONS = ("project", "entity", "group", "name", "tags", "notes", "job_type", "id", "save_code", "resume")


@dataclass
class Asked:
    """What a run of W&B gets beside metrics, as its config says."""

    log_model: bool = False
    registry: str | None = None
    log_data: bool = True
    watch: Literal["gradients", "parameters", "all"] | None = None


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
    registry: str | None = None,
    log_data: bool = True,
    watch: Literal["gradients", "parameters", "all"] | None = None,
    **options: Any,
) -> Logger:
    """Returns the logger of Weights & Biases; its run has begun.

    Args:
        mode: "auto": what WANDB_MODE says, else online if there is a key, else offline.
        timeout: seconds to wait for the server before the run goes on offline.
        finish_timeout: seconds to wait at the end for uploads; with `log_model` at least 600.
        log_model: keep the best checkpoint as an artifact of the run.
        registry: with `log_model`, the collection that links to it, such as "wandb-registry-model/digits".
        log_data: say as an artifact which data the run uses: config, classes, hashes of the splits.
        watch: histograms by `run.watch`, every trainer.log_every_n_steps: each waits for the device.
        options: to `wandb.init`, those in OPTIONS.
    """
    if unknown := set(options) - set(OPTIONS):
        raise UserError(f"logger.wandb.{min(unknown)}: expected {', '.join(OPTIONS[:-1])} or {OPTIONS[-1]}")
    if registry and not log_model:
        advice = "add logger.wandb.log_model=true"
        raise UserError(f"logger.wandb.registry={registry}: it links to an artifact; {advice}")
    given = options.get("tags") or []  # some of them a list, that of the run's own tags
    options["tags"] = [str(one) for tag in given for one in (tag if isinstance(tag, list) else [tag])]
    # Of a run of which the command line changed nothing the first tags, data and backbone, are the name.
    options["name"] = telling(str(options.get("name") or "")) or "-".join(options["tags"][:2]) or None
    if getattr(rank_zero_only, "rank", 0) != 0:
        return WandbLogger(save_dir=save_dir)
    import wandb

    from imgcls.loggers.private import leave_out_job_inputs, remove_import_hooks

    before = Path(save_dir) / "wandb" / "latest-run"
    if before.exists():  # the run goes on
        options["id"], options["resume"] = before.resolve().name.rpartition("-")[2], "allow"
    patience = max(finish_timeout, UPLOAD) if log_model else finish_timeout
    settings = wandb.Settings(
        init_timeout=timeout,
        finish_timeout=patience,
        finish_timeout_raises=True,
        silent=True,
        stop_fn=partial(os.kill, os.getpid(), signal.SIGTERM),  # as its agent stops a run: in order
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
        log_once(logger, Path(save_dir) / "wandb" / "logged.txt")
    # Lightning's own log_model refuses to be offline
    vars(logger)["asked"] = Asked(log_model, registry, log_data, watch)
    return logger


def telling(name: str) -> str:
    """Returns a name made of overrides without those that say how a run is logged."""
    parts = re.split(r",(?=[+\w.@/]+=)", name)
    return ",".join(
        part for part in parts if not part.lstrip("+").startswith(("logger", "recovery.", "tags="))
    )


def log_once(logger: WandbLogger, path: Path) -> None:
    """Lets each row be logged once; online, the server may lack the last of a process that was killed."""
    run = logger.experiment
    logger.log_metrics = once(  # type: ignore[method-assign,assignment]
        logger.log_metrics, path, lambda: run.step, lambda place: run.offline or place < run.starting_step
    )


def asked_of(logger: lightnings.WandbLogger) -> Asked:
    asked: Asked = vars(logger).get("asked") or Asked(log_data=False)
    return asked


def begin_extras(
    logger: lightnings.WandbLogger, network: nn.Module, every: int, data: dict[str, Any]
) -> None:
    """Watches the network, and says which `data` the run uses, as far as the config asks for it."""
    asked, run = asked_of(logger), logger.experiment
    if asked.watch:
        run.watch(network, log=asked.watch, log_freq=max(every, 1))
    if asked.log_data and not run.disabled:
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", f"data-{data['name']}"), "dataset", metadata=data)
        with artifact.new_file("data.json") as file:
            json.dump(data, file, indent=2, sort_keys=True)
        if run.offline:
            run.log_artifact(artifact)
        else:  # it waits for the upload: the training does not
            Thread(target=quietly, args=("use_artifact", run.use_artifact, artifact), daemon=True).start()


def quietly(what: str, call: Callable[..., Any], *arguments: Any) -> None:
    """Calls a method of a run; of what goes wrong a line is logged."""
    try:
        call(*arguments)
    except Exception as error:
        log.warning("Weights & Biases: %s: %s", what, " ".join(str(error).split()) or type(error).__name__)


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


def log_checkpoint(logger: lightnings.WandbLogger, path: str) -> None:
    """Keeps a checkpoint as the artifact `<id of the run>-best`, and links a registry to it, where the config
    asks for it."""
    asked, run = asked_of(logger), logger.experiment
    if asked.log_model:
        artifact = run.log_artifact(path, name=f"{run.id}-best", type="model", aliases=["best"])
        if asked.registry and not run.offline:
            link = partial(quietly, "link_artifact", run.link_artifact, artifact, asked.registry)
            call_within(UPLOAD, link)  # it waits for the upload, as the end of the run does


def has_key() -> bool:
    """Tells whether there are credentials; never asks for them and never talks to the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
