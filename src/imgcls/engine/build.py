"""Builds the datamodule and Lightning's trainer that a config describes, fast on this hardware."""

import contextlib
import ctypes
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imgcls.augment.settings import Augment
from imgcls.config.build import build
from imgcls.config.paths import cache_dir
from imgcls.config.training import Node, TrainerConfig
from imgcls.data.module import ImageDataModule
from imgcls.engine.checkpoint import WholeFiles
from imgcls.engine.private import has_amx
from imgcls.errors import UserError
from imgcls.optim import build_optimizer, build_schedule
from imgcls.processes import cores
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
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
    """Seeds everything, allows the device's fast matrix products (TF32), and quiets Lightning."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOTES:
        warnings.filterwarnings("ignore", message=message)
    seed_everything(seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")
    # kept between runs, also where /tmp is not; read at the first compilation
    with contextlib.suppress(RuntimeError):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))


def build_data(node: Node, augment: Node | None, seed: int, split: str | None = None) -> ImageDataModule:
    """Builds the datamodule, fetches what it needs, and checks all its splits; with a `split` only tests
    follow, on that one."""
    given: dict[str, Any] = {} if augment is None else {"augment": Augment.read(augment)}
    data: ImageDataModule = build(node, "data", ImageDataModule, seed=seed, **given)
    data.prepare_data()
    data.setup() if split is None else data.setup_test(split)
    return data


def build_trainer(
    config: TrainerConfig, callbacks: list[Callback], loggers: list[Logger], run_dir: Path
) -> Trainer:
    """Builds Lightning's trainer; precision "auto" is what the device is good at. Raises UserError: a device,
    strategy or precision that is not to be had here."""
    node = config.arguments()
    if "max_epochs" in node and config.max_epochs is None:
        node["max_epochs"] = -1  # Lightning would make 1000 of it
    if node["precision"] == "auto":
        node["precision"] = best_precision(str(node.get("accelerator", "auto")))
    if re.search("spawn|fork|notebook", str(node.get("strategy"))):
        advice = "its processes can't take over what is built here; use ddp"
        raise UserError(f"trainer.strategy={node['strategy']}: {advice}")
    node["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    for key in ("strategy", "profiler"):
        if isinstance(node.get(key), Mapping):
            node[key] = build(node[key], f"trainer.{key}")
    plugins = node.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    node["plugins"] = [build(one, "trainer.plugins") if isinstance(one, Mapping) else one for one in plugins]
    if not isinstance(node.get("strategy"), ModelParallelStrategy):  # which writes by itself
        node["plugins"].append(WholeFiles())
    given: dict[str, Any] = {"default_root_dir": str(run_dir), "use_distributed_sampler": False}
    given |= {"callbacks": callbacks, "logger": loggers or False}
    try:
        trainer: Trainer = build(node, "trainer", Trainer, **given)
    except UserError as error:
        if not re.search("backend found|can not run on your system", str(error)):
            raise
        fault = f"trainer.accelerator={node.get('accelerator')}: torch {torch.__version__} finds none here"
        raise UserError(f"{fault}; write trainer=cpu, or leave trainer out") from error
    if isinstance(trainer.accelerator, CPUAccelerator):
        if trainer.num_devices > max(cores(), 2):  # 2: to try it anywhere
            advice = f"each is a process, and this machine has {cores()} cores"
            raise UserError(f"trainer.devices={trainer.num_devices}: {advice}")
        keep_freed_memory()
        trainer.callbacks.insert(0, GiveBack())  # type: ignore[attr-defined]
    return trainer


def share_batch(config: TrainerConfig, data: ImageDataModule, trainer: Trainer) -> None:
    """Shares `trainer.global_batch_size` among the devices and, where a share is more than data.batch_size,
    among batches whose gradients are accumulated. Raises UserError: it can't be shared evenly."""
    total, ranks = config.global_batch_size, trainer.world_size
    if total is None:
        return
    given = f"trainer.global_batch_size={total}"
    if trainer.accumulate_grad_batches != 1:
        raise UserError(f"{given} says how much is accumulated; leave out trainer.accumulate_grad_batches")
    share, rest = divmod(total, ranks)
    if rest or not share:
        raise UserError(f"{given}: expected a multiple of the {ranks} devices")
    if total > (images := len(data.sets["train"])):
        raise UserError(f"{given}: expected at most the {images:,} training images")
    parts = next(n for n in range(-(-share // data.batch_size), share + 1) if share % n == 0)
    data.batch_size, trainer.accumulate_grad_batches = share // parts, parts
    rank_zero_only(log.info)(f"a step: {total:,} samples, {ranks} × {data.batch_size} × {parts} accumulated")


def check_schedule(
    node: Node, task: Task, trainer: Trainer, data: ImageDataModule, own_groups: bool = False
) -> None:
    """Raises UserError for a schedule that needs an end, in a training that has none; and for one of torch
    that refuses its arguments. With `own_groups`, callbacks make other parameter groups, for which it can't
    be tried before."""
    steps, target = task.steps(trainer, data), node.get("scheduler", node).get("_target_", "")
    if steps.total is None:
        build_schedule(node, torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9), steps)
    elif not target.startswith("imgcls.") and not own_groups:  # ours have all their bounds in their types
        optimizer = build_optimizer(task.hparams["optimizer"], task.network, task.device, fused=False)
        build_schedule(node, optimizer, steps)


def best_precision(accelerator: str) -> str:
    """Returns Lightning's name of the fastest precision that trains as well as float32 here. This is bfloat16
    where the device multiplies it in hardware: GPUs from compute capability 8.0, CPUs with AMX. (With
    AVX512-BF16 alone a step is slower than in float32; docs/performance.md has the figures.)"""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if accelerator in ("auto", "cpu") and has_amx():
        return "bf16-mixed"
    return "32-true"


class Heap(ctypes.Structure):
    """The struct that `mallinfo2` of the C library returns (malloc.h): bytes and numbers of blocks."""

    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]


def keep_freed_memory(keep: bool = True) -> None:
    """Lets the C library, if it is glibc, keep the memory that tensors free, for the next tensors. By default
    it maps each large tensor from the system and gives it back, and the system clears the pages each time: a
    tenth to a fifth of a training step on a CPU. `GiveBack` bounds what is kept so."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0 if keep else 65536)  # else: the defaults
        mallopt(trim_threshold, -1 if keep else 131072)  # -1, as an unsigned number: never


class GiveBack(Callback):
    """Gives freed memory back to the system: after an epoch, if more than 1 GiB is kept, and at the end."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        give_back(above=2**30)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        give_back(above=0)


def give_back(above: int) -> None:
    """Gives freed memory back where the C library keeps more than `above` bytes, and is glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = Heap
        if library.mallinfo2().fordblks > above:
            library.malloc_trim(0)
