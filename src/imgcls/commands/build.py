"""Builds what a training is made of from its typed config."""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from imgcls.backbones.build import try_shapes
from imgcls.backbones.hub import resolved
from imgcls.backbones.preprocessing import note_difference, prepared_for
from imgcls.callbacks.finetune import Finetune
from imgcls.callbacks.step_curves import StepCurves, Throughput
from imgcls.config import check as configs
from imgcls.config.build import build
from imgcls.config.training import FIRST_WEIGHTS, FirstWeights, Node, Nodes, TrainConfig, TrainerConfig
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import build_data, build_trainer, check_schedule, prepare, share_batch
from imgcls.engine.checkpoint import SaveConfig
from imgcls.engine.last_checkpoint import LastCheckpoint
from imgcls.engine.recovery import Training
from imgcls.errors import UserError, nearest
from imgcls.loggers.progress import EpochProgress
from imgcls.processes import rank
from imgcls.spec import as_word
from imgcls.tasks.metrics import Better, logs_of
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
LAST_EPOCH = "epoch"  # what best.ckpt watches where nothing is validated; Lightning's checkpoints know it
OURS = ("imgcls.", "lightning.")  # packages of callbacks and tasks that log what they say


def read_config(plain: Node, begun: bool = False) -> TrainConfig:
    """Returns the typed form of a plain config, with images as the first weights expect them; a run that was
    `begun` has a checkpoint in place of these, and says in its config what they expected. Raises UserError:
    as `TrainConfig.read`."""
    config = TrainConfig.read(plain)
    if begun:
        backbone = {key: value for key, value in config.backbone.items() if key not in FIRST_WEIGHTS}
        return config.model_copy(update={"backbone": backbone})
    backbone = resolved(config.backbone)
    first, finetune = FirstWeights.read(backbone), config.callbacks.get("finetune")
    if finetune and first.weights is None and not first.pretrained and rank() == 0:
        given = "neither backbone.weights=FILE nor backbone.pretrained=true is given"
        log.warning("finetune: %s: the network has not learnt, and what is frozen stays as drawn", given)
    parts = {"backbone": backbone, "data": prepared_for(backbone, config.data)}
    return config.model_copy(update={**parts, "record": {**config.record, **parts}})


def assemble(
    config: TrainConfig, run_dir: Path, resumed_from: Path | None = None
) -> tuple[Training, dict[str, Better]]:
    """Builds data, task, callbacks and trainer; the loggers come later. Returns also the direction in which
    each metric that is logged, or optimised, is better."""
    data, task, callbacks, better = build_parts(config)
    config = validated(config, data)
    check_monitored(config, callbacks, better, open_ended=not all(ours(one) for one in (task, *callbacks)))
    callbacks.append(SaveConfig(config.record, resumed_from))
    trainer = build_trainer(config.trainer, callbacks, [], run_dir)
    share_batch(config.trainer, data, trainer)
    check_schedule(config.scheduler, task, trainer, data, any(isinstance(one, Finetune) for one in callbacks))
    optimised = {name: config.mode_of(name, better) for name in config.all_metrics}
    return Training(trainer, task, data), better | optimised


def build_parts(config: TrainConfig) -> tuple[ImageDataModule, Task, list[Callback], dict[str, Better]]:
    """Seeds everything, and builds data, task and callbacks; returns also the names of what these log, each
    with the direction in which it is better."""
    prepare(config.seed)
    data = build_data(config.data, config.augment, config.seed)
    note_difference(config.backbone, data.spec)
    task = build_task(config, data)
    if task.fits_on_validation and not len(data.sets["val"]):
        fitted = "task.temperature=false, or of several labels task.thresholds=false"
        raise UserError(f"data.val_fraction=0 leaves no images to fit on; write {fitted}")
    better = task.measures(data.spec).logged(config.metrics) | logs_of(config.callbacks)
    return data, task, build_callbacks(validated(config, data), better), better


def validated(config: TrainConfig, data: ImageDataModule) -> TrainConfig:
    """Returns the config; of data without a validation split (data.val_fraction=0) one that validates
    nothing, and whose best.ckpt is that of the last epoch."""
    if len(data.sets["val"]):
        return config
    trainer = config.trainer.model_copy(update={"limit_val_batches": 0})
    given = config.recovery
    recovery = given.model_copy(update={"monitor": given.monitor or LAST_EPOCH})
    return config.model_copy(update={"trainer": trainer, "recovery": recovery})


def build_callbacks(config: TrainConfig, better: Mapping[str, Better]) -> list[Callback]:
    """Builds the callbacks that every training has, and after them those that `callbacks` adds."""
    settings, folder = config.recovery, f"{config.run_dir}/checkpoints"
    monitor = settings.monitor or config.first_metric
    best = ModelCheckpoint(
        dirpath=folder, filename=settings.filename, monitor=monitor, save_top_k=settings.save_top_k,
        mode=settings.mode or config.mode_of(monitor, better) or "max",  # `check_monitored` refuses none
        auto_insert_metric_name=False, enable_version_counter=False, save_on_train_epoch_end=True,
    )  # fmt: skip
    return [
        best,
        LastCheckpoint(folder, settings.every_minutes),
        Throughput(),
        StepCurves(
            config.trainer.log_every_n_steps, settings.flush_seconds, settings.flush_every_n_steps,
            settings.gradient_norm,
        ),
        EpochProgress(settings.refresh_seconds),
        *added_callbacks(config, better),
    ]  # fmt: skip


def build_all(nodes: Nodes, group: str, kind: type) -> list[Any]:
    """Builds the callbacks or loggers that are not switched off. Raises UserError: one is of another kind."""
    built = {name: build(node, f"{group}.{name}") for name, node in nodes.items() if node}
    for name, one in built.items():
        if not isinstance(one, kind):
            expected = f"it makes a {type(one).__name__}, expected a {kind.__name__} of Lightning"
            raise UserError(f"{group}.{name}: {expected}")
    return list(built.values())


def build_task(config: TrainConfig, data: ImageDataModule) -> Task:
    """Builds the task for the data. Raises UserError: a call within its settings, whose result would be in
    the checkpoints, or targets that are not for it."""
    if nested := [key for key, value in config.task.items() if configs.has_nodes(value)]:
        advice = "a checkpoint keeps a task's settings, which are plain; build it in the task's __init__"
        raise UserError(f"task.{nested[0]} has a call within it: {advice}")
    task: Task = build(
        config.task, "task", Task, spec=asdict(data.spec), backbone=config.backbone, loss=config.loss,
        optimizer=config.optimizer, scheduler=config.scheduler, augment=config.augment,
        metrics={name: node for name, node in config.metrics.items() if node},
        class_counts=data.class_counts(), train_images=len(data.sets["train"]), seed=config.seed,
        channels_last=config.channels_last, compile=config.compile,
    )  # fmt: skip
    targets = data.sets["train"].targets
    task.check_targets(targets)
    if data.spec.train_size is not None:
        any_size = "expected a network that takes any size (of timm with backbone.dynamic_img_size=true)"
        advice = f"data.train_size={as_word(data.spec.train_size)}: {any_size}"
        try_shapes(task.network, task.outputs(), data.spec.channels, data.spec.train_size, advice)
    if data.views and not task.takes_views:
        given = f"augment.image makes {data.views} views of an image, and {type(task).__name__} takes one"
        raise UserError(f"{given}; choose a task that takes views (takes_views = True)")
    task.augment.check(data.views, targets[:4].float() if targets.ndim == 2 else targets[:4])
    return task


def added_callbacks(config: TrainConfig, better: Mapping[str, Better]) -> list[Callback]:
    """Builds the callbacks. One that must watch a metric watches the first of optimized_metric if its config
    names none, and one that watches gets the direction in which the metric is better, if its config says
    none."""
    nodes: Nodes = {}
    for name, node in config.callbacks.items():
        if not node:
            continue
        parameters = inspect.signature(configs.locate(node["_target_"], f"callbacks.{name}")).parameters
        watched = node.get("monitor")
        if "monitor" in parameters and parameters["monitor"].default is inspect.Parameter.empty:
            watched = watched or config.first_metric
            node = {"monitor": watched, **node}
        mode = config.mode_of(watched, better) if watched and not node.get("mode") else None
        if mode is not None and "mode" in parameters:
            node = {**node, "mode": mode}
        nodes[name] = node
    return build_all(nodes, "callbacks", Callback)


def ours(built: object) -> bool:
    """Says whether what a thing logs is known: a task or callback from elsewhere may log more."""
    return type(built).__module__.startswith(OURS)


def check_monitored(
    config: TrainConfig, callbacks: list[Callback], better: Mapping[str, Better], open_ended: bool
) -> None:
    """Raises UserError where a metric is watched that is not logged, or in the wrong direction. `open_ended`:
    a task or callback that is not ours may log metrics beside those in `better`; then a name must come with
    its direction."""
    watchers: list[Any] = [callback for callback in callbacks if getattr(callback, "monitor", None)]
    others = [f"callbacks: {type(one).__name__}." for one in watchers[1:]]
    places = ["recovery.", *others]  # the first keeps best.ckpt
    watched = [(place, one.monitor, one.mode) for place, one in zip(places, watchers, strict=True)]
    schedule, mode = config.watched_by_schedule
    watched += [("scheduler.", schedule, mode)] if schedule else []
    keys = [("optimized_metric", name, config.mode_of(name, better)) for name in config.all_metrics]
    keys += [(f"{where}monitor", name, mode) for where, name, mode in watched]
    for key, name, mode in keys:
        if name == LAST_EPOCH:
            continue
        if name not in better and not (open_ended and mode):
            more = "; a metric of your own callback or task needs its direction, too" if open_ended else ""
            raise UserError(f"{key}={name}: no such metric is logged; {nearest(name, better)}{more}")
        if mode is None:
            expected = "set optimized_mode=min or optimized_mode=max"
            raise UserError(f"{key}={name}: this metric does not say which way it is better; {expected}")
        why = (
            "data.val_fraction=0"
            if config.recovery.monitor == LAST_EPOCH
            else never_validated(config.trainer)
        )
        if name.startswith("val/") and why:
            text = f"{key}={name}: with {why} nothing is validated"
            raise UserError(f"{text}; watch train/loss, or let it validate")
    for keeper in (one for one in watchers if getattr(one, "save_top_k", 1) not in (0, 1)):
        if "{" not in (keeper.filename or "{"):  # several files are kept
            given = f"save_top_k={keeper.save_top_k} with filename={keeper.filename}"
            advice = "each file needs a name of its own, such as filename='{epoch:03d}'"
            place = "recovery" if keeper is watchers[0] else "callbacks: ModelCheckpoint"
            raise UserError(f"{place}: {given}: {advice}")
    for where, name, mode in watched:
        right = config.mode_of(name, better)
        if mode is not None and right is not None and mode != right:
            raise UserError(f"{where}mode={mode}: {name} is better the other way; set mode={right}")


def never_validated(trainer: TrainerConfig) -> str | None:
    """Returns the setting of conf/trainer by which no epoch is validated, if there is one."""
    for key in ("limit_val_batches", "max_epochs", "max_steps"):
        if getattr(trainer, key) == 0:
            return f"trainer.{key}=0"
    every, epochs = trainer.check_val_every_n_epoch or 1, trainer.max_epochs or -1
    return f"trainer.check_val_every_n_epoch={every} in {epochs} epochs" if 0 < epochs < every else None
