"""What this machine is good at."""

import ctypes

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def best_precision(accelerator: str) -> str:
    """Returns Lightning's name of the fastest precision that trains as well as float32 here.

    bfloat16 where the device multiplies it in hardware: GPUs from compute capability 8.0, CPUs with AMX. (With
    AVX512-BF16 alone a step is slower than in float32; docs/performance.md has the figures.)
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if accelerator in ("auto", "cpu") and torch.cpu.get_capabilities().get("amx_tile"):
        return "bf16-mixed"
    return "32-true"


class Heap(ctypes.Structure):
    """What `mallinfo2` says of the C library's heap (malloc.h), in bytes and in numbers of blocks."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def keep_freed_memory(keep: bool = True) -> None:
    """Lets the C library keep what tensors free, for the next ones; it does nothing where that is not glibc.

    By default each large tensor is mapped from the system and given back, and its pages are cleared each time: a
    tenth to a fifth of a training step on a CPU. `GiveBack` bounds what is kept so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0 if keep else 65536)  # else: the defaults
        mallopt(trim_threshold, -1 if keep else 131072)  # -1, as an unsigned number: never


class GiveBack(Callback):
    """Gives freed memory back to the system: after an epoch, where more than `above` bytes are kept, and at the end."""

    def __init__(self, above: int = 2**30) -> None:
        self.above = above

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        give_back(self.above)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        give_back(0)


def give_back(above: int) -> None:
    """Gives freed memory back where the C library keeps more than `above` bytes; nothing where that is not glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = Heap
        if library.mallinfo2().fordblks > above:
            library.malloc_trim(0)
