"""Builds what a training is made of from its typed config."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from imgcls.callbacks.step_curves import LossCurve, Throughput
from imgcls.config import check as configs
from imgcls.config.metrics import Metrics, direction, first
from imgcls.config.training import Node, Nodes, TrainConfig, TrainerConfig
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import build_data, build_trainer, check_schedule, prepare
from imgcls.engine.checkpoint import SaveConfig
from imgcls.engine.last_checkpoint import LastCheckpoint
from imgcls.engine.recovery import Training
from imgcls.errors import UserError, nearest
from imgcls.loggers.progress import EpochProgress
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.metrics import logged_names


def assemble(config: TrainConfig, run_dir: Path, resumed_from: Path | None = None) -> Training:
    """Builds data, classifier, callbacks and trainer; the loggers come later."""
    prepare(config.seed)
    data = build_data(config.data, config.augment, config.seed)
    classifier = build_classifier(config, data)
    callbacks = build_callbacks(config)
    names = logged_names(classifier.spec.num_classes)
    check_monitored(config.optimized_metric, callbacks, config.scheduler, config.trainer, names)
    callbacks.append(SaveConfig(config.record, resumed_from))
    trainer = build_trainer(config.trainer, callbacks, [], run_dir)
    check_schedule(config.scheduler, classifier, trainer, data)
    return Training(trainer, classifier, data)


def build_callbacks(config: TrainConfig) -> list[Callback]:
    """Builds the callbacks that every training has, and after them those that `callbacks` adds."""
    settings, folder = config.recovery, f"{config.run_dir}/checkpoints"
    monitor = settings.monitor or first(config.optimized_metric)
    best = ModelCheckpoint(
        dirpath=folder, filename=settings.filename, monitor=monitor, mode=settings.mode or direction(monitor),
        save_top_k=settings.save_top_k, auto_insert_metric_name=False, enable_version_counter=False,
        save_on_train_epoch_end=True,
    )  # fmt: skip
    return [
        best,
        LastCheckpoint(folder, settings.every_minutes),
        Throughput(),
        LossCurve(config.trainer.log_every_n_steps),
        EpochProgress(settings.refresh_seconds),
        *build_all(config.callbacks, "callbacks"),
    ]


def build_all(nodes: Nodes, group: str) -> list[Any]:
    """Builds the callbacks or loggers that are not switched off."""
    return [configs.build(node, f"{group}.{name}") for name, node in nodes.items() if node]


def build_classifier(config: TrainConfig, data: ImageDataModule) -> ImageClassifier:
    """Builds the classifier for the data."""
    weights = config.class_weights
    if weights == "balanced":  # as scikit-learn's: classes count alike, and the mean weight of a sample is 1
        counts = data.class_counts()
        weights = [sum(counts) / (len(counts) * count) for count in counts]
    return ImageClassifier(
        spec=asdict(data.spec), backbone=config.backbone, loss=config.loss, optimizer=config.optimizer,
        scheduler=config.scheduler, augment=config.augment, class_weights=weights, seed=config.seed,
        channels_last=config.channels_last, compile=config.compile,
    )  # fmt: skip


def check_monitored(
    optimized: Metrics, callbacks: list[Any], scheduler: Node, trainer: TrainerConfig, names: set[str]
) -> None:
    """Raises UserError where a metric is watched that is not among the `names` of those that are logged, or
    in the wrong direction; `optimized` is `optimized_metric`, which the others follow by default."""
    watchers = [callback for callback in callbacks if getattr(callback, "monitor", None)]
    watched = [(f"callbacks: {type(one).__name__}.", one.monitor, one.mode) for one in watchers]
    if schedule := scheduler.get("monitor"):
        watched.append(("scheduler.", schedule, scheduler.get("mode")))
    keys = [("optimized_metric", name) for name in ([optimized] if isinstance(optimized, str) else optimized)]
    keys += [(f"{where}monitor", name) for where, name, _ in watched]
    for key, name in keys:
        if name not in names:
            raise UserError(f"{key}={name}: no such metric is logged; {nearest(name, names)}")
        if name.startswith("val/") and (why := never_validated(trainer)):
            text = f"{key}={name}: with {why} nothing is validated"
            raise UserError(f"{text}; watch train/loss, or let it validate")
    for keeper in callbacks:  # several files are kept
        if getattr(keeper, "save_top_k", 1) not in (0, 1) and "{" not in (keeper.filename or "{"):
            given = f"ModelCheckpoint.save_top_k={keeper.save_top_k} with filename={keeper.filename}"
            advice = "each file needs a name of its own, such as recovery.filename='{epoch:03d}'"
            raise UserError(f"callbacks: {given}: {advice}")
    for where, name, mode in watched:
        if mode is not None and mode != direction(name):
            raise UserError(f"{where}mode={mode}: {name} is better the other way; set mode={direction(name)}")


def never_validated(trainer: TrainerConfig) -> str | None:
    """Returns the setting of conf/trainer by which no epoch is validated, if there is one."""
    for key in ("limit_val_batches", "max_epochs", "max_steps"):
        if getattr(trainer, key) == 0:
            return f"trainer.{key}=0"
    every, epochs = trainer.check_val_every_n_epoch or 1, trainer.max_epochs or -1
    return f"trainer.check_val_every_n_epoch={every} in {epochs} epochs" if 0 < epochs < every else None
