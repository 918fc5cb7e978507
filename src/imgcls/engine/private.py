"""Private names of Lightning, torch and torchmetrics: the one file of the engine that touches them. Each
function says why it is needed and what breaks without it. Seen in lightning 2.6.6, torch 2.15.0 and
torchmetrics 1.9.0; tests/engine/test_private.py fails when one of them drops or changes such a name."""

import subprocess
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric

RankCommand = Callable[[int], tuple[list[str], str]]
Observer = Callable[[list[subprocess.Popen[bytes]]], None]


def has_amx() -> bool:
    """Returns whether this CPU multiplies bfloat16 tiles in hardware (AMX). `torch.cpu.get_capabilities`,
    which is public, is missing in torch 2.11, the oldest that is supported."""
    return bool(torch.cpu._is_amx_tile_supported())


def skip_sigterm_broadcast(trainer: Trainer) -> None:
    """Keeps Lightning's training loop from sharing SIGTERM among processes by a flag on the device: each step
    waits for it. LastCheckpoint has its own agreement, over the CPU and every few steps."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def count_by_epochs(trainer: Trainer) -> None:
    """Makes Lightning's training loop restore its place by epochs also where `max_steps` ends the training.
    With `max_steps` Lightning takes a checkpoint from an epoch's end for one from the middle of an epoch: the
    resumed run would leave out the hooks at the epoch's start and the schedules that wait for a metric."""
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def restore_metric(metric: Metric, states: dict[str, Tensor | list[Tensor]]) -> None:
    """Gives a metric the states by name that it had within an epoch. torchmetrics loads states, but
    not that there were updates: `compute` would warn that it comes before any."""
    metric._update_count = 1
    for name, state in states.items():
        setattr(metric, name, state)


def set_last_rates(schedule: LRScheduler, rates: list[float]) -> None:
    """Sets the learning rates of a schedule's optimizer, one for each parameter group. Without `_last_lr` the
    schedule's `get_last_lr`, for loggers, has the old rates up to the next step."""
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = [*rates]


def averaged_model(callback: WeightAveraging) -> AveragedModel:
    """Returns the average that Lightning's callback keeps; EMA updates it without a read from the device."""
    model = callback._average_model
    assert model is not None
    return model


def start_ranks_with(command: RankCommand, observer: Observer) -> None:
    """Sets the command (and its working directory) that Lightning starts each further process of a training
    with, and the observer of all. Lightning's own command runs the whole command line again, and with `-m`
    the whole sweep. Its observer kills this process, with no word, soon after another has failed."""
    subprocess_script._hydra_subprocess_cmd = command  # type: ignore[assignment]
    subprocess_script._launch_process_observer = lambda child_processes: observer(child_processes)


def shard_over_all_devices(strategy: ModelParallelStrategy) -> None:
    """Makes a strategy shard over all devices of all nodes, before it sets its processes up. Lightning takes
    a number before the devices are counted, or "auto", which is the number of nodes."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
