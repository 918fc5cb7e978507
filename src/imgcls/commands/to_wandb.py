"""What a training gives its W&B run beside metrics and config."""

from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from imgcls.backbones.layers import flops
from imgcls.config.training import TrainConfig
from imgcls.engine.recovery import Training
from imgcls.loggers import wandb
from imgcls.loggers.unharmed import has_failed, unharmed
from imgcls.loggers.wandb import begin_extras, log_checkpoint
from imgcls.processes import peak_memory
from imgcls.runs.run_files import best_epoch
from imgcls.tasks.metrics import Better


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Returns the W&B loggers of the first process that still take what they are told."""
    found = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return [logger for logger in found if trainer.is_global_zero and not has_failed(logger)]


def follow_best(metric: str, better: dict[str, Better], trainer: Trainer, run_dir: Path) -> None:
    """Lets W&B have the best value so far of the metric that is optimised."""
    for logger in wandb_loggers(trainer):
        if isinstance(logger, wandb.WandbLogger):  # and none of the user's own
            before = best_epoch(run_dir, metric).get(f"best/{metric}")
            logger.follow(metric, better.get(metric) or "max", before)


def begin_wandb(config: TrainConfig, training: Training) -> None:
    """Gives the W&B run what it has beside metrics."""
    data, spec = training.data, training.data.spec
    facts = {"name": config.names["data"], "splits": data.fingerprint()}
    facts |= {"class_names": list(spec.class_names), "class_counts": data.class_counts()}
    for logger in wandb_loggers(training.trainer):
        with unharmed(logger):
            begin_extras(logger, training.task.network, config.trainer.log_every_n_steps, facts)


def summarise(training: Training, run_dir: Path) -> None:
    """Puts what was measured in the best epoch, and what the run cost, into the summary of the W&B run."""
    trainer, task, data = training
    monitor = getattr(trainer.checkpoint_callback, "monitor", "")
    for logger in wandb_loggers(trainer):
        with unharmed(logger):
            logger.experiment.summary.update(best_epoch(run_dir, monitor) if monitor else {})
            costs: dict[str, float] = {"parameters": sum(p.numel() for p in task.network.parameters())}
            with suppress(RuntimeError, NotImplementedError):  # a network that shapes alone can't run
                costs["flops"] = flops(task.network, 1, data.spec.channels, *data.spec.for_training.size)
            logger.experiment.summary.update(costs | {"peak_memory_gb": peak_memory() / 1e9})


def keep_artifact(trainer: Trainer, best: str | None) -> None:
    """Keeps the best checkpoint as an artifact of the W&B run, where `logger.wandb.log_model` asks for it."""
    for logger in wandb_loggers(trainer) if best else []:
        with unharmed(logger):
            log_checkpoint(logger, str(best))
