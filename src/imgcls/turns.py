"""What `imgcls bench` hangs into a training: it stops now and then, and lets the bare network and the loader run."""

import copy
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from imgcls.classifier import ImageClassifier
from imgcls.data.base import Batch, ImageDataModule
from imgcls.data.spec import DataSpec
from imgcls.optimizers import build_optimizer

# Events that make the host wait for the device: what follows depends on values that they bring.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
READ_EVENTS = {f"aten::{name}" for name in READS} | {"Memcpy DtoH (Device -> Pageable)"}
PROFILED_STEPS = 20


class TakeTurns(Callback):
    """Measures images a second of the training that it is a callback of, of the bare network, and of the loader.

    Args:
        seconds: that each turn lasts.
        rounds: number of turns of each.
    """

    def __init__(self, seconds: float, rounds: int) -> None:
        self.seconds, self.rounds = seconds, rounds
        self.rates: dict[str, list[float]] = {"floor": [], "loader": [], "train": []}
        self.step, self.steps, self.images, self.start = 0, 0, 0, 0.0
        self.bare: Callable[[int], None] | None = None
        self.profiler: profile | None = None
        self.reads = 0.0

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ImageClassifier, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.step += 1
        self.images += len(batch.targets)
        if self.profiler is not None:
            if self.step == PROFILED_STEPS or batch_idx + 2 == trainer.num_training_batches:
                self.profiler.stop()
                self.reads = count_reads(self.profiler) / self.step
                trainer.should_stop = True
        elif self.bare is None:
            self.begin(trainer, pl_module, batch)
        elif len(self.rates["train"]) == self.rounds:
            if batch_idx == 0:  # steps within an epoch are looked at
                self.step, self.profiler = 0, profile()
                self.profiler.start()
        elif self.step == self.warmup:
            self.images, self.start = 0, now()
        elif self.step == self.warmup + self.steps:
            self.rates["train"].append(self.images * trainer.world_size / (now() - self.start))
            self.step = 0
            if len(self.rates["train"]) < self.rounds:
                self.others(trainer.world_size, len(batch.targets))

    def begin(self, trainer: Trainer, classifier: ImageClassifier, batch: Batch) -> None:
        """Makes the bare network and a loader of its own, and finds out how many steps a turn takes."""
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.batches = endless(data)
        self.workers = data.train_dataloader().num_workers
        self.warmup = 3 + 3 * self.workers  # batches that workers made ready in the others' turns are not counted
        self.bare = bare_steps(trainer, classifier, batch)
        self.bare(2)
        start = now()
        self.bare(3)
        self.steps = max(round(self.seconds / (now() - start) * 3), 3)
        self.facts = describe(classifier)
        self.on_cpu = classifier.device.type == "cpu"
        self.others(trainer.world_size, len(batch.targets))
        self.step = 0

    def others(self, ranks: int, batch_size: int) -> None:
        """Lets the bare network and the loader take their turns."""
        assert self.bare is not None
        self.bare(3)
        start = now()
        self.bare(self.steps)
        self.rates["floor"].append(self.steps * batch_size * ranks / (now() - start))
        for _ in range(self.warmup):
            next(self.batches)
        images, start = 0, now()
        while (seconds := now() - start) < self.seconds:
            images += len(next(self.batches).targets)
        self.rates["loader"].append(images * ranks / seconds)

    def figures(self) -> dict[str, Any]:
        """Returns what was measured, plain."""
        out: dict[str, Any] = {}
        for name, rates in self.rates.items():
            out[f"{name}_images_per_second"] = statistics.median(rates)
            out[f"{name}_spread"] = [min(rates), max(rates)]
        ratios = [train / floor for train, floor in zip(self.rates["train"], self.rates["floor"], strict=True)]
        out["ratio"], out["ratio_spread"] = statistics.median(ratios), [min(ratios), max(ratios)]
        return out | {
            "device_reads_per_step": self.reads, "bound_by": self.bound(out["ratio"]),
            "peak_memory_bytes": peak_memory(), "steps_per_turn": self.steps, **self.facts,
        }  # fmt: skip

    def bound(self, ratio: float) -> str:
        """Says what the time goes to, from the time an image takes in each of the three."""
        floor, loader, train = (1 / statistics.median(self.rates[name]) for name in ("floor", "loader", "train"))
        beside = self.workers > 0 and not self.on_cpu  # the loader has cores of its own, and hides behind the network
        cost = max(loader - floor, 0.0) if beside else loader
        if ratio >= 0.95 or train <= floor:
            return "the network"
        return "the loader" if cost > (train - floor) / 2 else "the work around the network"


def bare_steps(trainer: Trainer, classifier: ImageClassifier, batch: Batch) -> Callable[[int], None]:
    """Returns what takes n steps of a copy of the network on one batch, with nothing around them."""
    network: nn.Module = copy.deepcopy(classifier.network)
    if classifier.hparams["compile"]:
        network.compile()
    optimizer = build_optimizer(classifier.hparams["optimizer"], network, classifier.device, classifier.fused_steps())
    images, targets = classifier.normalise(batch.images).detach(), batch.targets.clone()
    every, count = trainer.accumulate_grad_batches, itertools.count(1)

    def run(steps: int) -> None:
        for number in itertools.islice(count, steps):
            with trainer.precision_plugin.forward_context():
                loss = classifier.training_loss(network(images), targets)[1]
            loss.backward()
            if number % every == 0:
                optimizer.step()
                optimizer.zero_grad()

    return run


def count_reads(profiler: profile) -> int:
    """Returns how often the host waited for a value of the device.

    The fused steps of the CPU look at their own step counts, which lie on the CPU always; these do not count.
    """

    def fused(event: Any) -> bool:
        return event is not None and (event.name.startswith("aten::_fused") or fused(event.cpu_parent))

    return sum(event.name in READ_EVENTS and not fused(event) for event in profiler.events())


def endless(data: ImageDataModule) -> Iterator[Batch]:
    """Yields the batches of epoch after epoch from a loader of its own."""
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader


def describe(classifier: ImageClassifier) -> dict[str, Any]:
    """Returns parameters, and the operations (two for a multiply-add) of one image forward."""
    network, spec = classifier.network, classifier.spec
    return {
        "parameters": sum(p.numel() for p in network.parameters()), "flops": flops(network, spec),
        "device": device_name(classifier.device), "precision": classifier.trainer.precision,
    }  # fmt: skip


def flops(network: nn.Module, spec: DataSpec) -> int:
    """Returns the floating-point operations of one image forward, counted on shapes alone."""
    state = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    images = torch.empty(1, spec.channels, spec.image_size, spec.image_size, device="meta")
    training = network.training
    with FlopCounterMode(display=False) as counter:
        torch.func.functional_call(network.eval(), state, images)
    network.train(training)
    return counter.get_total_flops()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def peak_memory() -> int:
    """Returns bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def now() -> float:
    """Returns seconds, when the device has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
