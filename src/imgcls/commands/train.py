"""imgcls train: from a config to a trained, tested, logged network in a run directory."""

import gc
import logging
import shlex
import signal
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.plugins import Plugins
from pydantic import Field

from imgcls.commands.verb import verb
from imgcls.config import check as configs
from imgcls.config.paths import shown
from imgcls.engine.resume import check_data, check_progress, claim, finished, newest_whole, resumed
from imgcls.engine.signals import SIGNALS, Stopped
from imgcls.errors import TrialPruned, UserError
from imgcls.runs.best_epoch import Metrics, best_epoch, check_monitored, optimised
from imgcls.runs.record import keeping_status, write_record
from imgcls.sweeps.sweeper import Sweep

log = logging.getLogger(__name__)
Plugins.instance().register(Sweep)  # conf/hydra/sweeper/imgcls.yaml
FAULTS = {
    "on_nonfinite": ("stop", "skip"),
    "on_oom": ("stop", "halve"),
}  # keys of conf/trainer that aren't Lightning's


@dataclass(frozen=True)
class Settings:
    """The types of conf/train.yaml's own keys."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    run_dir: str
    test: bool
    tune: Literal["lr", "batch_size"] | None
    temperature: bool
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None
    channels_last: bool
    compile: bool
    optimized_metric: Metrics
    resume: str | None
    overwrite: bool


@verb("train")
def main(config: dict[str, Any], run_dir: Path) -> float | list[float] | None:
    """Runs one training; returns the best value of `optimized_metric`, which a sweep optimises."""
    SIGNALS.install()
    lock = None
    try:
        from hydra.core.hydra_config import HydraConfig

        goes_on = (resuming := config["resume"] is not None) and (run_dir / "config.yaml").is_file()
        config = resumed(config, run_dir, list(HydraConfig.get().overrides.task))
        settings = checked(config)
        lock = claim(run_dir, settings.overwrite, resuming)
        checkpoint = newest_whole(run_dir / "checkpoints") if goes_on else None
        if checkpoint is not None and finished(run_dir, config):
            log.info("%s is finished; there is nothing to go on with", shown(run_dir))
            return optimised(run_dir, settings.optimized_metric)
        from imgcls.engine.ranks import single_job

        with single_job():
            return train(config, settings, run_dir, checkpoint)
    except TrialPruned as pruned:
        log.info("pruned: %s; not tested", pruned)
        return None
    finally:
        SIGNALS.restore()
        if lock is not None:
            lock.release()


def checked(config: dict[str, Any]) -> Settings:
    """Checks names and types of the whole config before anything is built; returns the keys of its own."""
    from imgcls.engine.build import check_bounds

    for group in ("data", "augment", "backbone", "loss", "optimizer", "scheduler", "trainer"):
        if not config.get(group):
            raise UserError(f"{group}: nothing is chosen; write {group}=…")
    settings = configs.typed({k: v for k, v in config.items() if k in Settings.__annotations__}, Settings, "")
    network = {
        k: v for k, v in config["backbone"].items() if k != "weights"
    }  # a file: not the network's business
    for key, choices in FAULTS.items():
        if config["trainer"].get(key, choices[0]) not in choices:
            raise UserError(f"trainer.{key}={config['trainer'][key]}: expected {' or '.join(choices)}")
    ours = [("precision", "auto"), *((key, value) for key, values in FAULTS.items() for value in values)]
    trainer = {k: v for k, v in config["trainer"].items() if (k, v) not in ours}
    configs.check({**config, "backbone": network, "trainer": trainer})
    check_bounds(trainer)
    return settings


def train(
    config: dict[str, Any], settings: Settings, run_dir: Path, checkpoint: Path | None
) -> float | list[float] | None:
    """Trains from the start or from a checkpoint, tests the best checkpoint, and reports."""
    from imgcls.engine.build import build_data, build_trainer, prepare
    from imgcls.engine.recovery import fit
    from imgcls.engine.save_config import SaveConfig
    from imgcls.loggers.unharmed import told
    from imgcls.loggers.wandb import close_wandb

    prepare(settings.seed)
    data = build_data(config["data"], config["augment"], settings.seed)
    if settings.tune is not None:
        from imgcls.commands.tune import KEPT, tune

        classifier = build_classifier(config, settings, data)
        callbacks: list[Any] = [c for c in build_all(config, "callbacks") if isinstance(c, KEPT)]
        trainer = build_trainer({**config["trainer"], "limit_val_batches": 0}, callbacks, [], run_dir)
        return tune(settings.tune, trainer, classifier, data, run_dir)
    trainer, classifier = assemble(config, settings, data, run_dir, checkpoint)
    if trainer.is_global_zero:
        describe(config, classifier, data, trainer, run_dir)
        if checkpoint is None:
            config = {**config, "git": write_record(run_dir, config, data.fingerprint())}
        else:
            check_data(run_dir, data.fingerprint())
            check_progress(checkpoint, trainer)

    def rebuilt(config: dict[str, Any]) -> tuple[Any, Any, Any]:
        prepare(settings.seed)
        data = build_data(config["data"], config["augment"], settings.seed)
        return *assemble(config, settings, data, run_dir), data

    parameters = sum(p.numel() for p in classifier.network.parameters())
    status, word = 1, "failed"
    saver = next(c for c in trainer.callbacks if isinstance(c, SaveConfig))
    try:
        with (
            keeping_status(run_dir, parameters, lambda: saver.trained)
            if trainer.is_global_zero
            else nullcontext()
        ):
            trainer.loggers = told(build_all(config, "logger"), run_dir, config)
            trainer, classifier, data = fit((trainer, classifier, data), rebuilt, config, run_dir, checkpoint)
            summarise(trainer, run_dir)
            if any(getattr(callback, "pruned", False) for callback in trainer.callbacks):
                raise TrialPruned(
                    f"the other trials of the sweep were better by epoch {trainer.current_epoch}"
                )
            best = finish(trainer, classifier, data, settings, run_dir)
        status, word = 0, "finished"
        return best
    except Stopped as stopped:
        status, word = int(stopped.code or 1), "stopped"
        raise
    except TrialPruned:
        status, word = 0, "pruned"
        raise
    finally:
        preempted = word == "stopped" and SIGNALS.asked != signal.SIGINT
        close_wandb(trainer.loggers, status, word, preempted)
        del trainer, classifier, data
        gc.collect()


def assemble(
    config: dict[str, Any], settings: Settings, data: Any, run_dir: Path, resumed_from: Path | None = None
) -> tuple[Any, Any]:
    """Builds the trainer, without loggers, and the classifier."""
    from imgcls.engine.build import build_trainer, check_schedule
    from imgcls.engine.save_config import SaveConfig

    classifier = build_classifier(config, settings, data)
    callbacks = build_all(config, "callbacks")
    check_monitored(config, callbacks, classifier.logged_names())
    saver = SaveConfig(config, resumed_from)
    trainer = build_trainer(config["trainer"], [*callbacks, saver], [], run_dir)
    check_schedule(config["scheduler"], classifier, trainer, data)
    return trainer, classifier


def build_all(config: dict[str, Any], group: str) -> list[Any]:
    """Builds the callbacks or loggers that are not switched off."""
    return [
        configs.build(node, f"{group}.{name}") for name, node in (config.get(group) or {}).items() if node
    ]


def build_classifier(config: dict[str, Any], settings: Settings, data: Any) -> Any:
    """Builds the classifier for the data."""
    from imgcls.tasks.classification import ImageClassifier

    weights = settings.class_weights
    if weights == "balanced":  # as scikit-learn's: classes count alike, and the mean weight of a sample is 1
        counts = data.class_counts()
        weights = [sum(counts) / (len(counts) * count) for count in counts]
    return ImageClassifier(
        spec=asdict(data.spec), backbone=config["backbone"], loss=config["loss"], optimizer=config["optimizer"],
        scheduler=config["scheduler"], augment=config["augment"], class_weights=weights, seed=settings.seed,
        channels_last=settings.channels_last, compile=settings.compile,
    )  # fmt: skip


def describe(config: dict[str, Any], classifier: Any, data: Any, trainer: Any, run_dir: Path) -> None:
    """Says in four lines what is going to be trained, on what, where."""
    parameters = sum(p.numel() for p in classifier.network.parameters())
    backbone = config["backbone"].get("name") or config["names"]["backbone"]
    sizes = ", ".join(f"{len(data.sets[s]):,} {s}" for s in ("train", "val", "test"))
    side, channels, classes = data.spec.image_size, data.spec.channels, data.spec.num_classes
    log.info("data: %s images of %d×%d×%d, %d classes", sizes, channels, side, side, classes)
    log.info("backbone: %s, %s parameters", backbone, f"{parameters:,}")
    world = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    log.info("device: %s, precision %s%s", trainer.strategy.root_device.type, trainer.precision, world)
    if trainer.max_steps > 0 and trainer.max_steps % classifier.steps(trainer, data).per_epoch:
        log.warning(
            "trainer.max_steps=%d ends within an epoch: the steps after the last whole one are not validated",
            trainer.max_steps,
        )
    log.info("run directory: %s", shown(run_dir))


def finish(
    trainer: Any, classifier: Any, data: Any, settings: Settings, run_dir: Path
) -> float | list[float] | None:
    """Tests the best checkpoint (with none: the weights in memory); prints and logs what came out."""
    from lightning.pytorch.loggers import WandbLogger

    from imgcls.data.loading.unreadable import listed
    from imgcls.engine.build import run_test
    from imgcls.engine.calibration import calibrate
    from imgcls.loggers.unharmed import has_failed, unharmed
    from imgcls.loggers.wandb import log_checkpoint
    from imgcls.report.test_report import log_to_wandb, print_summary

    keeper = trainer.checkpoint_callback
    best = keeper.best_model_path if keeper is not None else ""
    data.on_error, data.max_errors = "skip", 0.5  # for a file that can't be read no training is lost
    if settings.temperature:
        calibrate(trainer, classifier, data, best or None)
    if settings.test:
        report = run_test(trainer, classifier, data, run_dir / "test", best or None)
        if report is not None:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and not has_failed(logger):
                    log_to_wandb(logger.experiment, report, run_dir / "test", data.spec)
            lines = {"run directory": shown(run_dir), "test report": shown(run_dir / "test")}
            if rows := listed(run_dir / "unreadable.csv"):
                lines["left out"] = f"{len(rows)} unreadable images, see {shown(run_dir / 'unreadable.csv')}"
            if best:
                lines["evaluate again"] = f"imgcls eval {shlex.quote(f'checkpoint={shown(best)}')}"
            print_summary(f"Test of {'the best checkpoint' if best else 'the last weights'}", report, lines)
    for logger in trainer.loggers if trainer.is_global_zero and best else []:
        if getattr(logger, "keeps_best", False):
            with unharmed(logger):
                log_checkpoint(logger.experiment, best)
    return optimised(run_dir, settings.optimized_metric)


def summarise(trainer: Any, run_dir: Path) -> None:
    """Puts all that was measured in the best epoch into the summary of the W&B run."""
    from lightning.pytorch.loggers import WandbLogger

    from imgcls.loggers.unharmed import unharmed

    keeper = trainer.checkpoint_callback
    for logger in trainer.loggers if trainer.is_global_zero and keeper is not None and keeper.monitor else []:
        if isinstance(logger, WandbLogger):
            with unharmed(logger):
                logger.experiment.summary.update(best_epoch(run_dir, keeper.monitor))
