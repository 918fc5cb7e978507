"""Builds what a training is made of from its typed config."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from imgcls.config import check as configs
from imgcls.config.training import Nodes, TrainConfig
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import build_data, build_trainer, check_schedule, prepare
from imgcls.engine.checkpoint import SaveConfig
from imgcls.engine.recovery import Training
from imgcls.runs.best_epoch import check_monitored
from imgcls.tasks.classification import ImageClassifier


def assemble(config: TrainConfig, run_dir: Path, resumed_from: Path | None = None) -> Training:
    """Builds data, classifier, callbacks and trainer; the loggers come later."""
    prepare(config.seed)
    data = build_data(config.data, config.augment, config.seed)
    classifier = build_classifier(config, data)
    callbacks = build_all(config.callbacks, "callbacks")
    names = classifier.logged_names()
    check_monitored(config.optimized_metric, callbacks, config.scheduler, config.trainer, names)
    callbacks.append(SaveConfig(config.record, resumed_from))
    trainer = build_trainer(config.trainer, callbacks, [], run_dir)
    check_schedule(config.scheduler, classifier, trainer, data)
    return Training(trainer, classifier, data)


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
