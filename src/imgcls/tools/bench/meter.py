"""TakeTurns callback: interrupts a training, and lets the bare network and the loader run in turns."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

from imgcls.backbones.layers import flops
from imgcls.data.batch import Batch
from imgcls.data.module import ImageDataModule
from imgcls.optim import build_optimizer
from imgcls.processes import peak_memory
from imgcls.tasks.network import data_of
from imgcls.tasks.task import Task

# Events that make the host wait for the device: what follows depends on values that they bring.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
READ_EVENTS = {f"aten::{name}" for name in READS} | {"Memcpy DtoH (Device -> Pageable)"}
PROFILED_STEPS = 20


class TakeTurns(Callback):
    """Images a second of the training it is in, the bare network and the loader, in `rounds` of `seconds`."""

    def __init__(self, seconds: float, rounds: int) -> None:
        self.seconds, self.rounds = seconds, rounds
        self.rates: dict[str, list[float]] = {"floor": [], "loader": [], "train": []}
        self.facts: dict[str, Any] = {}
        self.turns: Iterator[None] | None = None

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Task, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.turns = self.turns or self.take_turns(trainer, pl_module, batch)
        next(self.turns)

    def take_turns(self, trainer: Trainer, task: Task, batch: Batch) -> Iterator[None]:
        """Measures from within the training, which takes a step at each `yield`."""
        data = data_of(trainer)
        batches, bare = endless(data), bare_steps(trainer, task, batch)
        workers, images = data.train_dataloader().num_workers, len(batch.targets) * trainer.world_size
        warmup = 3 + 3 * workers  # batches that workers made ready in the others' turns are not counted
        bare(2)
        steps = max(round(3 * self.seconds / timed(bare, 3)), 3)
        self.facts = describe(task) | {"steps_per_turn": steps}
        # The loader's cores are not the network's: it works beside it.
        self.beside = workers > 0 and task.device.type != "cpu"
        for _ in range(self.rounds):
            bare(3)
            self.rates["floor"].append(steps * images / timed(bare, steps))
            self.rates["loader"].append(loader_rate(batches, warmup, self.seconds) * trainer.world_size)
            yield from itertools.repeat(None, warmup)
            start = now()
            yield from itertools.repeat(None, steps)
            self.rates["train"].append(steps * images / (now() - start))
        yield
        while trainer.fit_loop.batch_idx > 0:  # the reads are counted in the first steps of an epoch
            yield
        steps = max(min(PROFILED_STEPS, int(trainer.num_training_batches) - 2), 1)
        with profile() as profiler:
            yield from itertools.repeat(None, steps)
        self.facts["device_reads_per_step"] = count_reads(profiler) / steps
        trainer.should_stop = True
        yield from itertools.repeat(None)  # the steps that the trainer takes before it stops

    def figures(self) -> dict[str, Any]:
        """Returns what was measured, plain."""
        turns = zip(self.rates["train"], self.rates["floor"], strict=True)
        ratios = [train / floor for train, floor in turns]
        out: dict[str, Any] = {"ratio": statistics.median(ratios), "ratio_spread": [min(ratios), max(ratios)]}
        for name, rates in self.rates.items():
            out[f"{name}_images_per_second"] = statistics.median(rates)
            out[f"{name}_spread"] = [min(rates), max(rates)]
        return out | self.facts | {"bound_by": self.bound(out["ratio"]), "peak_memory_bytes": peak_memory()}

    def bound(self, ratio: float) -> str:
        """Says what the time goes to, from the time an image takes in each of the three."""
        floor, loader, train = (1 / statistics.median(rates) for rates in self.rates.values())
        if ratio >= 0.95 or train <= floor:
            return "the network"
        # The loader is hidden behind the network, or takes of its time.
        cost = max(loader - floor, 0.0) if self.beside else loader
        return "the loader" if cost > (train - floor) / 2 else "the work around the network"


def bare_steps(trainer: Trainer, task: Task, batch: Batch) -> Callable[[int], None]:
    """Returns a function that takes n steps of a copy of the network on one batch, and does nothing else."""
    whole: nn.Module = copy.deepcopy(task.network)
    # Features that were computed once (imgcls.callbacks.features) need the head alone.
    probed = batch.images.is_floating_point()
    network = whole.get_submodule(task.head_name) if probed else whole
    if task.hparams["compile"]:
        network.compile()
    chosen, fused = task.hparams["optimizer"], task.fused_steps()
    optimizer = build_optimizer(chosen, whole, task.device, fused)
    images = (batch.images if probed else task.normalise(batch.images)).detach()
    targets = batch.targets.clone()
    every, count = trainer.accumulate_grad_batches, itertools.count(1)

    def run(steps: int) -> None:
        for number in itertools.islice(count, steps):
            with trainer.precision_plugin.forward_context():
                outputs = network(images)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                loss = task.training_loss(tuple(map(Tensor.float, outputs)), targets)
            loss.backward()
            if number % every == 0:
                optimizer.step()
                optimizer.zero_grad()

    return run


def loader_rate(batches: Iterator[Batch], warmup: int, seconds: float) -> float:
    """Returns how many images a second a loader yields for so many seconds, after some batches."""
    for _ in itertools.islice(batches, warmup):
        pass
    images, start = 0, now()
    while (passed := now() - start) < seconds:
        images += len(next(batches).targets)
    return images / passed


def count_reads(profiler: profile) -> int:
    """Returns how often the host waited for a value of the device."""

    # The fused steps of the CPU look at their own step counts, which lie on the CPU: these do not count.
    def fused(event: FunctionEvent | None) -> bool:
        return event is not None and (event.name.startswith("aten::_fused") or fused(event.cpu_parent))

    return sum(event.name in READ_EVENTS and not fused(event) for event in profiler.events())


def endless(data: ImageDataModule) -> Iterator[Batch]:
    """Yields the batches of epoch after epoch from a loader of its own."""
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader


def describe(task: Task) -> dict[str, Any]:
    """Returns the facts of a training that its speed depends on."""
    device, network = task.device, task.network
    threads = f"{device.type}, {torch.get_num_threads()} threads"
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "flops": flops(network, 1, task.spec.channels, *task.spec.for_training.size),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        "precision": task.trainer.precision,
    }


def timed(run: Callable[[int], None], steps: int) -> float:
    """Returns the seconds that so many steps take."""
    start = now()
    run(steps)
    return now() - start


def now() -> float:
    """Returns the time in seconds when the device has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
