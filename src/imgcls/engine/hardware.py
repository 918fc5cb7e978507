"""Hardware: the precision that a device is fast in, and the memory that the C library keeps for tensors."""

import ctypes

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from imgcls.engine.private import has_amx


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
