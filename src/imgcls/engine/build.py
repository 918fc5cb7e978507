"""What train and eval share: the trainer of a config, and a test with its report."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pydantic import Field

from imgcls.config import check as configs
from imgcls.config.paths import cache_dir
from imgcls.data.module import ImageDataModule
from imgcls.engine.checkpoint import WholeFiles
from imgcls.engine.hardware import GiveBack, best_precision, keep_freed_memory
from imgcls.errors import UserError
from imgcls.processes import cores
from imgcls.tasks.classification import ImageClassifier

if TYPE_CHECKING:
    from imgcls.report.test_report import Report

BOUNDS = {  # of what a Trainer would take and fail by, or do nothing: keys of conf/trainer
    "max_epochs": Annotated[int | None, Field(ge=-1)],
    "max_steps": Annotated[int, Field(ge=-1)],
    "accumulate_grad_batches": Annotated[int, Field(ge=1)],
    "gradient_clip_val": Annotated[float | None, Field(ge=0)],
    "limit_train_batches": Annotated[float, Field(gt=0)],
    "limit_val_batches": Annotated[float, Field(ge=0)],
    "limit_test_batches": Annotated[float, Field(gt=0)],
    "check_val_every_n_epoch": Annotated[int | None, Field(ge=1)],
    "val_check_interval": Annotated[float | None, Field(gt=0)],
    "num_sanity_val_steps": Annotated[int, Field(ge=-1)],
    "log_every_n_steps": Annotated[int, Field(ge=0)],
    "num_nodes": Annotated[int, Field(ge=1)],
}
NOTES = (  # of Lightning's, that a user can do nothing about
    ".*isinstance.treespec, LeafSpec.. is deprecated",
    ".*is smaller than the logging interval",
    ".*It is recommended to use .self.log",  # what is logged is a metric's value, the same on all ranks
    ".*does not have many workers",
    ".*Glyph .* missing from font",
    ".*could not find the monitored key",  # before the first validation; that it will be there is checked
    ".*Checkpoint directory .* exists and is not empty",
    ".*in eval mode at the start of training",  # frozen layers, where tune=batch_size trains again and again
)


def prepare(seed: int) -> None:
    """Seeds everything, takes the device's fast matrix products (TF32), and keeps Lightning's chatter down."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOTES:
        warnings.filterwarnings("ignore", message=message)
    seed_everything(seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")
    with contextlib.suppress(
        RuntimeError
    ):  # kept between runs, also where /tmp is not; read at the first compilation
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))


def build_data(
    config: Mapping[str, Any], augment: Mapping[str, Any] | None, seed: int, split: str = "test"
) -> ImageDataModule:
    """Builds the datamodule, fetches what it needs, and checks all its splits; tests will be on `split`."""
    data = configs.build(
        config,
        "data",
        ImageDataModule,
        seed=seed,
        **({} if augment is None else {"augment": to_augment(augment)}),
    )
    data.prepare_data()
    data.setup_test(split) if split != "test" else data.setup()
    return data


def to_augment(config: Mapping[str, Any]) -> Any:
    """Returns a config of conf/augment as an `Augment`, checked."""
    from imgcls.augment.image import Augment

    return configs.typed(dict(config), Augment, "augment")


def build_trainer(
    config: Mapping[str, Any], callbacks: list[Callback], loggers: list[Logger], run_dir: Path
) -> Trainer:
    """Builds Lightning's trainer; precision "auto" is what the device is good at.

    Raises:
        UserError: a device, strategy or precision that is not to be had here.
    """
    check_bounds(config)
    settings = {key: value for key, value in config.items() if key not in ("on_nonfinite", "on_oom")}
    if settings.get("max_epochs", 0) is None:
        settings["max_epochs"] = -1  # Lightning would make 1000 of it
    if settings["precision"] == "auto":
        settings["precision"] = best_precision(str(settings["accelerator"]))
    if re.search("spawn|fork|notebook", str(settings.get("strategy"))):
        raise UserError(
            f"trainer.strategy={settings['strategy']}: its processes can't take over what is built here; use ddp"
        )
    settings["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    for key in ("strategy", "profiler"):
        if isinstance(settings.get(key), Mapping):
            settings[key] = configs.build(settings[key], f"trainer.{key}")
    if not isinstance(settings.get("strategy"), ModelParallelStrategy):  # which writes by itself
        settings["plugins"] = [WholeFiles()]
    try:
        trainer = configs.build(
            settings,
            "trainer",
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=str(run_dir),
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    assert isinstance(trainer, Trainer)
    if trainer.world_size > 1 and config.get("on_oom") == "halve":
        raise UserError(
            f"trainer.on_oom=halve works in a single process, and here are {trainer.world_size}: one that runs out of "
            "memory can't tell the others; leave it out, or find the size before with tune=batch_size"
        )
    if isinstance(trainer.accelerator, CPUAccelerator):
        if trainer.num_devices > max(cores(), 2):  # 2: to try it anywhere
            raise UserError(
                f"trainer.devices={trainer.num_devices}: each is a process, and this machine has {cores()} cores"
            )
        keep_freed_memory()
        trainer.callbacks.insert(0, GiveBack())  # type: ignore[attr-defined]
    return trainer


def check_bounds(config: Mapping[str, Any]) -> None:
    """Raises UserError for a number of conf/trainer with which no training comes to its end."""
    for key in BOUNDS.keys() & config.keys():
        configs.typed(config[key], BOUNDS[key], f"trainer.{key}")


def check_schedule(
    config: Mapping[str, Any], classifier: ImageClassifier, trainer: Trainer, data: ImageDataModule
) -> None:
    """Raises UserError for a schedule that needs an end, in a training that has none."""
    steps = classifier.steps(trainer, data)
    if steps.total is None:
        configs.build(config, "scheduler", optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0), steps=steps)


def run_test(
    trainer: Trainer,
    classifier: ImageClassifier,
    data: ImageDataModule,
    folder: Path,
    path: str | None = None,
) -> "Report | None":
    """Tests the checkpoint at `path` (none: the weights in memory); on rank 0 writes the report and returns it."""
    from imgcls.report.report_page import draw_report
    from imgcls.report.test_report import make_report, write_report

    metrics = trainer.test(classifier, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)[0]
    if not trainer.is_global_zero:
        return None
    ordered = ["top1", "top5", "loss", "precision", "recall", "f1", "calibration_error"]
    ordered += ["loss_unscaled", "calibration_error_unscaled"]
    scaled = {"test/temperature": classifier.temperature} if classifier.temperature != 1 else {}
    metrics = {
        f"test/{name}": metrics[f"test/{name}"] for name in ordered if f"test/{name}" in metrics
    } | scaled
    report = make_report(metrics, classifier.tested, data.sets["test"], data.spec)
    write_report(report, folder, data.spec)
    draw_report(report, folder, data.spec, classifier, data.sets["test"])
    return report
