"""What a second process brings on two cores.

Measures images a second of whole trainings, in turns, and the sum of gradients.

python docs/ddp_cost.py [rounds]     in an empty folder; prints the figures of docs/scaling.md
"""

import contextlib
import csv
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

from imgcls.__main__ import main

NETWORKS = ("resnet20", "simple_cnn")
REDUCED = {"resnet20": 0.27, "simple_cnn": 0.29, "resnet18": 11.2, "resnet50": 25.6}  # million parameters
WAYS = {  # processes, threads and images of a batch, for each process
    "1 process, 1 thread, batch 64": (1, 1, 64),
    "1 process, 2 threads, batch 64": (1, 2, 64),
    "2 processes, batch 32 each": (2, 1, 32),
    "2 processes, batch 64 each": (2, 1, 64),
}


def forked(task: Callable[[], None], processes: int, threads: int) -> None:
    """Runs a task in processes that know of each other by what torchrun would tell them."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    children = []
    for rank in range(processes):
        children.append(os.fork())
        if children[-1] == 0:
            if processes > 1:
                told = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "GROUP_RANK": 0,
                    "WORLD_SIZE": processes,
                    "MASTER_PORT": port,
                }
                told |= {
                    "LOCAL_WORLD_SIZE": processes,
                    "MASTER_ADDR": "127.0.0.1",
                    "TORCHELASTIC_RUN_ID": "cost",
                }
                os.environ |= {name: str(value) for name, value in told.items()}
            torch.set_num_threads(threads)
            status = 1
            try:
                task()
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes


def train(folder: Path, network: str, processes: int, threads: int, size: int) -> float:
    """Returns the images a second of all processes together, the median of all epochs but the first."""
    trainer = "ddp_cpu" if processes > 1 else "cpu"
    given = (
        f"backbone={network} data.image_size=32 data.batch_size={size} trainer={trainer} trainer.max_epochs=4"
    )
    sys.argv = ["imgcls", "train", *given.split(), "logger=csv", "test=false", f"hydra.run.dir={folder}"]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        forked(main, processes, threads)
    with (folder / "metrics.csv").open() as file:
        return statistics.median(float(row["images_per_second"]) for row in list(csv.DictReader(file))[1:])


def reduce() -> None:
    """Prints how long the sum of all gradients takes."""
    distributed.init_process_group("gloo")
    for name, millions in REDUCED.items():
        gradients, times = torch.zeros(int(millions * 1e6)), []
        for _ in range(20):
            begin = time.perf_counter()
            distributed.all_reduce(gradients)
            times.append(time.perf_counter() - begin)
        if distributed.get_rank() == 0:
            spread = f"({1e3 * min(times):.1f} to {1e3 * max(times):.1f})"
            print(
                f"all-reduce, {name}, {4 * millions:.1f} MB: {1e3 * statistics.median(times):.1f} ms {spread}"
            )


forked(reduce, 2, 1)
rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
for network in NETWORKS:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for number, (way, values) in enumerate(WAYS.items()):
            rates[way].append(train(Path(f"{network}-{turn}-{number}"), network, *values))
    for way, values in rates.items():
        low, high = min(values), max(values)
        print(
            f"{network}, {way}: {statistics.median(values):.0f} images/s ({low:.0f} to {high:.0f})",
            flush=True,
        )
