"""imgcls bench: measures what a training costs beyond the network's own arithmetic. Three things run in
turns, in one process, so that a busy machine slows all alike: the floor (forward, backward and optimizer step
on one batch that lies on the device, in a bare loop), the loader alone, and train, what `imgcls train` does
between two validations, with its loggers, metrics and progress bar."""

import io
import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Column, Table

from imgcls.commands.build import build_all, build_parts, read_config
from imgcls.config import check as configs
from imgcls.config.paths import shown
from imgcls.config.training import Node, TrainConfig
from imgcls.engine.build import build_trainer
from imgcls.engine.ranks import single_job
from imgcls.errors import UserError
from imgcls.loggers.progress import EpochProgress
from imgcls.tools.bench.meter import TakeTurns

SPEEDS = {"floor": "bare network", "loader": "loader alone", "train": "imgcls train"}


@dataclass(frozen=True)
class Turns:
    """Keys of `bench` in conf/bench.yaml."""

    seconds: Annotated[float, Field(gt=0)]
    rounds: Annotated[int, Field(ge=1)]


def main(plain: Node, run_dir: Path) -> float:
    """Measures one config; returns the ratio of the training to the floor."""
    turns = configs.typed(plain.pop("bench"), Turns, "bench")
    path = configs.typed(plain.pop("json"), Path | None, "json")
    if path:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UserError(f"json={path}: expected a file, new or there already, that can be written")
    config = read_config(plain)
    with single_job():
        figures = measure(config, turns, run_dir)
    if figures is None:  # not the first process
        return 0.0
    (run_dir / "bench.json").write_text(json.dumps(figures, indent=2) + "\n")
    rows = [figures]
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # all jobs up to this one
        files = list(run_dir.parent.glob("*/bench.json"))
        files.sort(key=lambda file: int(file.parent.name.partition("_")[0]))
        rows = [json.loads(file.read_text()) for file in files]
    if path:
        path.write_text(json.dumps(rows if len(rows) > 1 else figures, indent=2) + "\n")
    show(rows)
    print(f"figures: {shown(run_dir / 'bench.json')}")
    return float(figures["ratio"])


def measure(config: TrainConfig, turns: Turns, run_dir: Path) -> dict[str, Any] | None:
    """Trains as `imgcls train` does, without end, validation and checkpoints, for as long as the turns take.
    Returns what was measured; None on all ranks but the first."""
    data, task, callbacks, _ = build_parts(config)
    if not type(task).compute.__module__.startswith("imgcls."):
        raise UserError("bench measures the tasks of imgcls; one of your own may run the network twice")
    callbacks = [c for c in callbacks if not isinstance(c, Checkpoint | EarlyStopping)]
    for progress in (c for c in callbacks if isinstance(c, EpochProgress)):
        progress.console = Console(file=io.StringIO(), force_terminal=True)  # drawn, but not seen
    endless = config.trainer.model_copy(update={"max_epochs": 10**6, "max_steps": -1, "limit_val_batches": 0})
    meter = TakeTurns(turns.seconds, turns.rounds)
    trainer = build_trainer(endless, [*callbacks, meter], [], run_dir)
    if isinstance(trainer.strategy, ModelParallelStrategy):
        why = "a sharded network has no copy to compare with"
        raise UserError(f"bench measures one device or trainer=ddp; {why}")
    for node in config.logger.values():
        if node and "mode" in node:
            node["mode"] = "offline"  # nothing of a benchmark is uploaded
    # The line for each epoch is written to the log, not shown.
    logging.getLogger("imgcls.loggers.progress").setLevel(logging.WARNING)
    trainer.loggers = build_all(config.logger, "logger", Logger)
    try:
        trainer.fit(task, datamodule=data)
    finally:
        for logger in trainer.loggers:
            logger.finalize("success")
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()
    if not trainer.is_global_zero:
        return None
    return {"backbone": config.backbone.get("name") or config.names["backbone"], **meter.figures()}


def show(rows: list[dict[str, Any]]) -> None:
    """Prints one run in full, or a table with a row for each."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if len(rows) == 1:
        for name, text in in_full(rows[0]).items():
            console.print(f"  {name:<25}{text}")
        return
    names = ("parameters", "GFLOPs", *SPEEDS, "ratio", "reads a step", "memory")
    heads = [Column(name, justify="right") for name in names]
    table = Table("backbone", *heads, box=box.SIMPLE, caption="floor, loader, train: images a second")
    for row in rows:
        network = (f"{row['parameters'] / 1e6:,.2f} M", f"{row['flops'] / 1e9:,.3f}")
        speeds = [f"{row[f'{name}_images_per_second']:,.0f}" for name in SPEEDS]
        reads, memory = f"{row['device_reads_per_step']:g}", f"{row['peak_memory_bytes'] / 1e9:.1f} GB"
        table.add_row(row["backbone"], *network, *speeds, f"{row['ratio']:.3f}", reads, memory)
    console.print(table)


def in_full(row: dict[str, Any]) -> dict[str, str]:
    """Returns all that was measured of a run, in words."""
    words = {}
    for name, title in SPEEDS.items():
        spread = "{:,.0f} to {:,.0f}".format(*row[f"{name}_spread"])
        words[title] = f"{row[f'{name}_images_per_second']:,.0f} images/s ({spread})"
    return words | {
        "training to bare network": "{:.3f} ({:.3f} to {:.3f})".format(row["ratio"], *row["ratio_spread"]),
        "bound by": row["bound_by"],
        "reads from the device": f"{row['device_reads_per_step']:g} a step",
        "peak memory": f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
        "network": f"{row['parameters']:,} parameters, {row['flops'] / 1e9:.3f} GFLOPs forward for an image",
        "device": f"{row['device']}, precision {row['precision']}",
    }
