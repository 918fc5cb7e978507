"""Ranks: the processes of one training are started, watched and ended; FSDP2 shards over their devices."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from imgcls.config.paths import hydra_quoted
from imgcls.engine.private import shard_over_all_devices, start_ranks_with
from imgcls.errors import UserError

HELD: list[FileLock] = []  # of the GPU that this process has
PATIENCE = 30  # seconds to wait for the other ranks
Ranks = list[subprocess.Popen[bytes]]
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_command(_: int) -> tuple[list[str], str]:
    """Returns the command and folder that start one more rank of this job, in the same run directory."""
    hydra = HydraConfig.get()
    sources = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    command = [sys.executable, "-m", "imgcls", hydra.job.name, f"--config-name={hydra.job.config_name}"]
    command += [f"--config-dir={path}" for path in sources]
    command += [*hydra.overrides.task, "hydra.mode=RUN", "hydra.output_subdir=null"]
    command += [f"hydra.run.dir={hydra_quoted(hydra.runtime.output_dir)}"]
    return command, hydra.runtime.cwd


@contextmanager
def single_job() -> Iterator[None]:
    """Starts the ranks of the training within by `rank_command`; the next job finds nothing of them."""
    before = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    first = "LOCAL_RANK" not in before  # not itself a rank that another process started
    if HydraConfig.get().runtime.choices.get("hydra/launcher") == "joblib" and first:
        take_gpu(Path(HydraConfig.get().sweep.dir))
    ranks: Ranks = []
    start_ranks_with(rank_command, partial(watch, ranks))
    try:
        yield
        for process in ranks:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
    except RuntimeError as error:  # what a collective says where one of them has gone
        if reason := failure(ranks, 5):
            raise UserError(reason) from error
        raise
    finally:
        for process in ranks:
            process.kill()  # it would wait for this one
        ranks.clear()
        if first:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for name in RANK_VARIABLES:
                os.environ.pop(name, None)
            os.environ.update(before)


def watch(ranks: Ranks, started: Ranks) -> None:
    """Ends this process, where it waits on the device for a rank that it started and that has failed."""

    def look() -> None:
        while ranks and not failure(ranks):
            time.sleep(1)
        time.sleep(PATIENCE if ranks else 0)  # where the wait ends in an error, the run closes all by itself
        if reason := failure(ranks):
            print(f"imgcls train: {reason}", file=sys.stderr, flush=True)
            for process in ranks:
                process.kill()
            os._exit(1)

    ranks += started
    threading.Thread(target=look, daemon=True).start()


def failure(ranks: Ranks, seconds: float = 0) -> str | None:
    """Returns which of the ranks has failed, if one does within some seconds."""
    for number, process in enumerate(ranks, 1):
        with suppress(subprocess.TimeoutExpired):
            if status := process.wait(seconds):
                killed = "killed, as the system does where memory is short"
                why = killed if status == -9 else f"status {status}"
                return f"process {number + 1} of this training ended ({why}); go on with resume=RUN_DIR"
    return None


def take_gpu(folder: Path) -> None:
    """Gives this process one of several GPUs that no other job of a sweep in `folder` has, until it ends."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        return
    for gpu in gpus:
        lock = FileLock(folder / f".gpu-{gpu}.lock")
        with suppress(Timeout):
            lock.acquire(blocking=False)
            HELD.append(lock)
            break
    else:
        gpu = gpus[os.getpid() % len(gpus)]  # more jobs than GPUs
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu


class FullyShardStrategy(ModelParallelStrategy):
    """FSDP2 over all devices; checkpoints are whole, one file, as in any other run."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        shard_over_all_devices(self)
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads the weights and, to train on, the optimizer's state of each parameter that has some: torch
        wants it of those that learn now, and drops that of others, which may learn in a later epoch."""
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn != TrainerFn.FITTING:
            optimizers, self.optimizers = self.optimizers, []
            try:
                return super().load_checkpoint(checkpoint_path, weights_only)
            finally:
                self.optimizers = optimizers
        content = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        learning = {parameter: parameter.requires_grad for parameter in self.lightning_module.parameters()}
        for optimizer, saved in zip(self.optimizers, content["optimizer_states"], strict=True):
            keys = [key for group in saved["param_groups"] for key in group["params"]]
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            for parameter, key in zip(parameters, keys, strict=True):
                parameter.requires_grad_(key in saved["state"])
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            for parameter, learns in learning.items():
                parameter.requires_grad_(learns)
