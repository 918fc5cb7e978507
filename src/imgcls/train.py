"""imgcls train: from a config to a trained, tested, logged network in a run directory."""

import gc
import logging
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from imgcls import config as configs
from imgcls.command import verb
from imgcls.errors import UserError, nearest
from imgcls.run import hydra_quoted, shown, write_record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The types of conf/train.yaml's own keys."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    run_dir: str
    test: bool
    tune: Literal["lr", "batch_size"] | None
    temperature: bool
    class_weights: Literal["balanced"] | list[float] | None
    channels_last: bool
    compile: bool
    optimized_metric: str


@verb("train")
def main(config: dict[str, Any], run_dir: Path) -> float | None:
    """Runs one training; returns the best value of `optimized_metric`, which a sweep optimises."""
    settings = checked(config)
    from imgcls.distributed import single_job

    with single_job():
        return train(config, settings, run_dir)


def checked(config: dict[str, Any]) -> Settings:
    """Checks names and types of the whole config before anything is built; returns the keys of its own."""
    settings = configs.typed({k: v for k, v in config.items() if k in Settings.__annotations__}, Settings, "")
    network = {k: v for k, v in config["backbone"].items() if k != "weights"}  # a file: not the network's business
    trainer = {k: v for k, v in config["trainer"].items() if (k, v) != ("precision", "auto")}  # ours
    configs.check({**config, "backbone": network, "trainer": trainer})
    return settings


def train(config: dict[str, Any], settings: Settings, run_dir: Path) -> float | None:
    """Trains, tests the best checkpoint, and reports."""
    from imgcls.callbacks import SaveConfig
    from imgcls.training import build_data, build_trainer, prepare

    refuse_used(run_dir)
    prepare(settings.seed)
    data = build_data(config["data"], config["augment"], settings.seed)
    classifier = build_classifier(config, settings, data)
    if settings.tune is not None:
        from imgcls.tune import tune

        trainer = build_trainer({**config["trainer"], "limit_val_batches": 0}, kept_for_tuning(config), [], run_dir)
        return tune(settings.tune, trainer, classifier, data, run_dir)
    callbacks = build_all(config, "callbacks")
    check_monitored(config, callbacks, classifier.logged_names(), settings)
    trainer = build_trainer(config["trainer"], [*callbacks, SaveConfig(config)], [], run_dir)
    if trainer.is_global_zero:
        describe(config, classifier, data, trainer, run_dir)
        config = {**config, "git": write_record(run_dir, config)}
    status = 1
    try:
        trainer.loggers = build_all(config, "logger")
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        fit(trainer, classifier, data, run_dir)
        best = finish(trainer, classifier, data, settings, run_dir)
        status = 0
        return best
    finally:
        close_loggers(status)
        del trainer, classifier, data
        gc.collect()


def kept_for_tuning(config: dict[str, Any]) -> list[Any]:
    """Returns the callbacks that say what learns; the others would write, draw or stop."""
    return [c for c in build_all(config, "callbacks") if type(c).__name__ in ("Finetune", "ProgressiveResizing")]


def build_all(config: dict[str, Any], group: str) -> list[Any]:
    """Builds the callbacks or loggers that are not switched off."""
    return [configs.build(node, f"{group}.{name}") for name, node in (config[group] or {}).items() if node]


def refuse_used(run_dir: Path) -> None:
    """Raises UserError where the run directory has a run in it: nothing is overwritten."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) == 0 and any(
        (run_dir / name).exists() for name in ("checkpoints", "metrics.csv", "test")
    ):
        raise UserError(f"{shown(run_dir)} holds a run already; give another folder as hydra.run.dir=…")


def fit(trainer: Any, classifier: Any, data: Any, run_dir: Path) -> None:
    """Trains. One that was stopped from outside ends the process with the signal's status."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        trainer.fit(classifier, datamodule=data)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except SystemExit:
        pass  # Lightning's, after an interrupt
    if not trainer.state.finished or trainer.received_sigterm:
        log.error("stopped before its end, and not tested; what was saved is in %s", shown(run_dir / "checkpoints"))
        sys.exit(143 if trainer.received_sigterm else 130)


def build_classifier(config: dict[str, Any], settings: Settings, data: Any) -> Any:
    """Builds the classifier for the data."""
    from imgcls.classifier import ImageClassifier

    weights = settings.class_weights
    if weights == "balanced":  # as scikit-learn's: classes count alike, and the mean weight of a sample is 1
        counts = data.class_counts()
        weights = [sum(counts) / (len(counts) * count) for count in counts]
    return ImageClassifier(
        spec=asdict(data.spec), backbone=config["backbone"], loss=config["loss"], optimizer=config["optimizer"],
        scheduler=config["scheduler"], augment=config["augment"], class_weights=weights, seed=settings.seed,
        channels_last=settings.channels_last, compile=settings.compile,
    )  # fmt: skip


def check_monitored(config: dict[str, Any], callbacks: list[Any], names: set[str], settings: Settings) -> None:
    """Raises UserError where a metric is watched that is never logged, or in the wrong direction."""
    watched = [(f"callbacks: {type(c).__name__}.", c.monitor, c.mode) for c in callbacks if getattr(c, "monitor", None)]
    if schedule := config["scheduler"].get("monitor"):
        watched.append(("scheduler.", schedule, config["scheduler"].get("mode")))
    named = [(f"{where}monitor", name) for where, name, _ in watched]
    for key, name in [*named, ("optimized_metric", settings.optimized_metric)]:
        if name not in names:
            raise UserError(f"{key}={name}: no such metric is logged; {nearest(name, names)}")
    for where, name, mode in watched:
        if mode is not None and mode != direction(name):
            raise UserError(f"{where}mode={mode}: {name} is better the other way; set mode={direction(name)}")


def direction(metric: str) -> str:
    """Returns "min" for what is better when it is small, else "max"."""
    return "min" if metric.endswith(("loss", "loss_step", "calibration_error")) else "max"


def describe(config: dict[str, Any], classifier: Any, data: Any, trainer: Any, run_dir: Path) -> None:
    """Says in four lines what is going to be trained, on what, where."""
    parameters = sum(p.numel() for p in classifier.network.parameters())
    backbone = config["backbone"].get("name") or config["names"]["backbone"]
    sizes = ", ".join(f"{len(data.sets[s]):,} {s}" for s in ("train", "val", "test"))
    spec = data.spec
    log.info(
        "data: %s images of %d×%d×%d, %d classes",
        sizes,
        spec.channels,
        spec.image_size,
        spec.image_size,
        spec.num_classes,
    )
    log.info("backbone: %s, %s parameters", backbone, f"{parameters:,}")
    world = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    log.info("device: %s, precision %s%s", trainer.strategy.root_device.type, trainer.precision, world)
    if trainer.max_steps > 0 and trainer.max_steps % classifier.steps(trainer, data).per_epoch:
        log.warning(
            "trainer.max_steps=%d ends within an epoch: the steps after the last whole one are not validated",
            trainer.max_steps,
        )
    log.info("run directory: %s", shown(run_dir))


def finish(trainer: Any, classifier: Any, data: Any, settings: Settings, run_dir: Path) -> float | None:
    """Tests the best checkpoint (with none: the weights in memory); prints and logs what came out."""
    from lightning.pytorch.loggers import WandbLogger

    from imgcls.calibration import calibrate
    from imgcls.report import log_to_wandb, print_summary
    from imgcls.training import run_test

    keeper = trainer.checkpoint_callback
    best = keeper.best_model_path if keeper is not None else ""
    value = trainer.callback_metrics.get(settings.optimized_metric)
    value = best_epoch(run_dir, settings.optimized_metric).get(f"best/{settings.optimized_metric}", value)
    tested = best_epoch(run_dir, keeper.monitor) if keeper is not None and keeper.monitor else {}
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(tested)
    if settings.temperature:
        calibrate(trainer, classifier, data, best or None)
    if settings.test:
        report = run_test(trainer, classifier, data, run_dir / "test", best or None)
        if report is not None:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    log_to_wandb(logger.experiment, report, run_dir / "test", data.spec)
            lines = {"run directory": shown(run_dir), "test report": shown(run_dir / "test")}
            if best:
                lines["evaluate again"] = f"imgcls eval {shlex.quote(f'checkpoint={hydra_quoted(shown(best))}')}"
            print_summary(f"Test of {'the best checkpoint' if best else 'the last weights'}", report, lines)
    return None if value is None else float(value)


def best_epoch(run_dir: Path, monitor: str) -> dict[str, float]:
    """Returns all that was measured in the epoch where `monitor` was best, as `best/…`; empty without a metrics.csv."""
    import pandas as pd

    path = run_dir / "metrics.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path)
    if monitor not in table or table[monitor].isna().all():
        return {}
    best = table[monitor].argmin() if direction(monitor) == "min" else table[monitor].argmax()
    return {f"best/{name}": float(value) for name, value in table.iloc[int(best)].dropna().items()}


def close_loggers(status: int) -> None:
    """Ends the W&B run, if there is one, with its status: without a code a failed run would show as finished."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=status)
