"""What this machine is good at."""

import torch


def best_precision(accelerator: str) -> str:
    """Returns Lightning's name of the fastest precision that trains as well as float32 here.

    bfloat16 where the device multiplies it in hardware: GPUs from compute capability 8.0, CPUs with AMX.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if accelerator in ("auto", "cpu") and torch.cpu._is_amx_tile_supported():
        return "bf16-mixed"
    return "32-true"
