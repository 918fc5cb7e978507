"""imgcls train: trains a network, tests its best checkpoint, and keeps all of it in a run directory."""

import gc
import logging
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from imgcls.commands.build import LAST_EPOCH, assemble, build_all, build_parts, read_config
from imgcls.commands.to_wandb import begin_wandb, follow_best, keep_artifact, summarise, wandb_loggers
from imgcls.config.paths import shown
from imgcls.config.training import Node, TrainConfig
from imgcls.data.loading.sampling import in_words
from imgcls.data.loading.splits import listed
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import build_trainer
from imgcls.engine.checkpoint import SaveConfig
from imgcls.engine.ranks import single_job
from imgcls.engine.recovery import Training, fit
from imgcls.engine.run_directory import check_data, check_progress, claim, finished, newest_whole, resumed
from imgcls.engine.signals import SIGNALS, Stopped
from imgcls.errors import TrialPruned
from imgcls.loggers.unharmed import told
from imgcls.loggers.wandb import close_wandb
from imgcls.runs.record import keeping_status, write_record
from imgcls.runs.run_files import best_epoch, optimised
from imgcls.tasks.metrics import Better

if TYPE_CHECKING:
    from imgcls.report.report import Report

# What the end of a run needs (pandas, the report) is imported there: the first step comes sooner.
log = logging.getLogger(__name__)
Score = float | list[float] | None  # the best value of optimized_metric, or of each of several


def main(plain: Node, run_dir: Path) -> Score:
    """Runs one training, from its start or from where it was stopped; returns what a sweep optimises."""
    lock = None
    try:
        resuming = plain["resume"] is not None
        goes_on = resuming and (run_dir / "config.yaml").is_file()
        plain = resumed(plain, run_dir, list(HydraConfig.get().overrides.task))
        config = None if goes_on else read_config(plain)
        lock = claim(run_dir, config is not None and config.overwrite, resuming)
        checkpoint = newest_whole(run_dir / "checkpoints") if goes_on else None
        config = config or read_config(plain, begun=checkpoint is not None)
        if checkpoint is not None and finished(run_dir, plain):
            log.info("%s is finished; there is nothing to go on with", shown(run_dir))
            return optimised(run_dir, config.optimized_metric)
        with single_job():
            return train(config, run_dir, checkpoint)
    except TrialPruned as pruned:
        log.info("pruned: %s; not tested", pruned)
        return None
    finally:
        if lock is not None:
            lock.release()


def train(config: TrainConfig, run_dir: Path, checkpoint: Path | None) -> Score:
    """Builds the training, fits it (on from a checkpoint), tests its best checkpoint, and reports."""
    if config.tune is not None:
        return tune(config, run_dir)
    training, better = assemble(config, run_dir, checkpoint)
    record = config.record
    if training.trainer.is_global_zero:
        describe(config, training, run_dir)
        if checkpoint is None:
            record = {**record, "git": write_record(run_dir, record, training.data.fingerprint())}
        else:
            check_data(run_dir, training.data.fingerprint())
            check_progress(checkpoint, training.trainer)

    def rebuild() -> Training:
        return assemble(config, run_dir)[0]

    try:
        with outcome_recorded(run_dir, training, better):
            training.trainer.loggers = told(build_all(config.logger, "logger", Logger), run_dir, record)
            follow_best(config.first_metric, better, training.trainer, run_dir)
            begin_wandb(config, training)
            training = fit(training, rebuild, config.recovery, run_dir, checkpoint)
            summarise(training, run_dir)
            callbacks: list[Callback] = training.trainer.callbacks  # type: ignore[attr-defined]
            if any(getattr(callback, "pruned", False) for callback in callbacks):  # by a search
                epoch = training.trainer.current_epoch
                raise TrialPruned(f"the other trials of the sweep were better by epoch {epoch}")
            calibrate_and_test(config, training, run_dir)
            keep_artifact(training.trainer, best_checkpoint(training.trainer))
            # Nobody asks the other processes.
            return optimised(run_dir, config.optimized_metric) if training.trainer.is_global_zero else None
    finally:
        del training  # its memory is freed before the next job of a sweep
        gc.collect()


def tune(config: TrainConfig, run_dir: Path) -> float:
    """Finds a learning rate or a batch size; trains nothing."""
    from imgcls.commands import tune as finders

    assert config.tune is not None
    data, task, callbacks, _ = build_parts(config)
    kept = [callback for callback in callbacks if isinstance(callback, finders.KEPT)]
    trainer = build_trainer(config.trainer.model_copy(update={"limit_val_batches": 0}), [*kept], [], run_dir)
    return finders.tune(config.tune, trainer, task, data, run_dir)


def name_twice_corrected(config: TrainConfig, data: ImageDataModule) -> None:
    """Warns of several settings that each make up for rare classes: together they do it twice."""
    adjusted = str(config.loss.get("_target_")).endswith(".LogitAdjustedLoss") and config.loss.get("tau") != 0
    given = {
        f"data.sampling={data.sampling}": data.sampling != "uniform",
        "task.class_weights=balanced": config.task.get("class_weights") == "balanced",
        "loss=logit_adjusted": adjusted,
    }
    if len(names := [name for name, there in given.items() if there]) > 1:
        words = "%s: each makes up for rare classes, and together they prefer these; one is meant to do"
        log.warning(words, " ".join(names))


def describe(config: TrainConfig, training: Training, run_dir: Path) -> None:
    """Says in four lines what is going to be trained, on what data, and where."""
    trainer, task, data = training
    parameters = sum(p.numel() for p in task.network.parameters())
    backbone = config.backbone.get("name") or config.names["backbone"]
    sizes = ", ".join(f"{len(data.sets[s]):,} {s}" for s in ("train", "val", "test"))
    spec, classes = data.spec, data.spec.num_classes
    named = f", {classes} classes" if classes else ""
    shape = "×".join(map(str, (spec.channels, *spec.size)))
    smaller = "" if spec.train_size is None else " ({}×{} in training)".format(*spec.for_training.size)
    log.info("data: %s images of %s%s%s", sizes, shape, smaller, named)
    if data.sampling != "uniform":
        told = in_words(data.class_counts(), spec.class_names, data.sampling)
        log.info("sampling: %s; images of a class → samples an epoch: %s", data.sampling, told)
    name_twice_corrected(config, data)
    log.info("backbone: %s, %s parameters", backbone, f"{parameters:,}")
    world = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    log.info("device: %s, precision %s%s", trainer.strategy.root_device.type, trainer.precision, world)
    if trainer.max_steps > 0 and trainer.max_steps % task.steps(trainer, data).per_epoch:
        rest = "the steps after the last whole one are not validated"
        log.warning("trainer.max_steps=%d ends within an epoch: %s", trainer.max_steps, rest)
    log.info("run directory: %s", shown(run_dir))


@contextmanager
def outcome_recorded(run_dir: Path, training: Training, better: dict[str, Better]) -> Iterator[None]:
    """Around a training: status.json and W&B get to know how it ended; status.json also has the direction in
    which each metric is `better`."""
    facts = {"parameters": sum(p.numel() for p in training.task.network.parameters()), "better": better}
    callbacks = training.trainer.callbacks  # type: ignore[attr-defined]
    saver = next(callback for callback in callbacks if isinstance(callback, SaveConfig))
    first = training.trainer.is_global_zero
    status, word = 1, "failed"
    try:
        with keeping_status(run_dir, facts, lambda: saver.trained) if first else nullcontext():
            yield
        status, word = 0, "finished"
    except Stopped as stopped:
        status, word = int(stopped.code or 1), "stopped"
        raise
    except TrialPruned:
        status, word = 0, "pruned"
        raise
    finally:
        # By SIGTERM alone W&B's agent ends a trial early, which is not to be begun again.
        by_agent = SIGNALS.asked == signal.SIGTERM and "WANDB_SWEEP_ID" in os.environ
        preempted = word == "stopped" and SIGNALS.asked != signal.SIGINT and not by_agent
        close_wandb(training.trainer.loggers, status, word, preempted)


def best_checkpoint(trainer: Trainer) -> str | None:
    """Returns the path of the best checkpoint; none: the last weights, in memory, are all there is."""
    return getattr(trainer.checkpoint_callback, "best_model_path", None) or None


def calibrate_and_test(config: TrainConfig, training: Training, run_dir: Path) -> None:
    """Fits what the task fits on validation, and tests the best checkpoint, where the config asks for it."""
    from imgcls.engine.evaluation import fit_on_validation, run_test
    from imgcls.report.origin import origin_of
    from imgcls.report.report import print_lines

    best = best_checkpoint(training.trainer)
    training.data.on_error, training.data.max_errors = "skip", 0.5  # a bad file shall not lose the training
    if training.task.fits_on_validation:
        fit_on_validation(training, best)
    if config.test:
        report = run_test(training, run_dir / "test", best, origin=lambda: origin_of(best, run_dir))
        if report is not None:
            publish(report, training, best, run_dir)
    elif training.trainer.is_global_zero:
        print_lines({"test": "none (test=false)", **closing(training, best, run_dir)})


def publish(report: "Report", training: Training, best: str | None, run_dir: Path) -> None:
    """Logs the test to W&B, and prints it with the places of its files."""
    from imgcls.report.report import print_summary

    for logger in wandb_loggers(training.trainer):
        report.log_to_wandb(logger.experiment, run_dir / "test")
    lines = closing(training, best, run_dir)
    lines = {"run directory": lines.pop("run directory"), "test report": shown(run_dir / "test"), **lines}
    print_summary(f"Test of {'the best checkpoint' if best else 'the last weights'}", report, lines)


def closing(training: Training, best: str | None, run_dir: Path) -> dict[str, str]:
    """Returns the last lines of a training, by name: where it lies, its best epoch, and what to run next."""
    lines = {"run directory": shown(run_dir)}
    monitor = getattr(training.trainer.checkpoint_callback, "monitor", None) or ""
    if monitor == LAST_EPOCH:
        lines["best epoch"] = "not chosen: nothing was validated, and the last one is kept as the best"
    elif found := best_epoch(run_dir, monitor):
        epoch, epochs = int(found["best/epoch"]), training.trainer.current_epoch
        value = f"{monitor} {found[f'best/{monitor}']:.4f}"
        lines["best epoch"] = f"{epoch + 1}/{epochs} ({epoch} in metrics.csv), {value}"
    if rows := listed(run_dir / "unreadable.csv"):
        lines["left out"] = f"{len(rows)} unreadable images, see {shown(run_dir / 'unreadable.csv')}"
    if best:
        again = "evaluate again" if training.trainer.state.fn == "test" else "evaluate"
        lines[again] = f"imgcls eval {shlex.quote(f'checkpoint={shown(best)}')}"
    return lines
