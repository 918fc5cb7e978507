"""imgcls predict: writes labels and probabilities of image files as they come, one row a file."""

import contextlib
import csv
import importlib.util
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from lightning.pytorch import Trainer
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.utils.data import DataLoader

from imgcls.commands.eval import CARRIED, evaluation_trainer
from imgcls.commands.evaluated import Chosen, load_chosen, set_tta
from imgcls.commands.outputs import appearing, check_out
from imgcls.commands.prediction_files import Rows, Write, writer
from imgcls.config.paths import shown
from imgcls.config.training import Node
from imgcls.data.files import Failure, FileBatch, file_loader, images_of
from imgcls.data.module import Place
from imgcls.engine.build import build_trainer, prepare
from imgcls.errors import UserError
from imgcls.tasks.network import Tta
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Chosen):
    """Keys of conf/predict.yaml."""

    source: Place
    trainer: Node
    out: Place | None
    overwrite: bool
    top_k: Annotated[int, Field(ge=1)] | None
    embedding: bool
    tta: Tta | None
    batch_size: Annotated[int, Field(ge=1)] | None
    num_workers: Annotated[int, Field(ge=0)] | None
    max_pixels: Annotated[int, Field(ge=1)]


def main(config: PredictConfig, run_dir: Path) -> None:
    """Predicts all images of the source; fails at the end where some could not be read."""
    out = Path(config.out).expanduser() if config.out else run_dir / "predictions.csv"
    unreadable = out.with_name(f"{out.name}.unreadable.csv")
    check_out(out, (".csv", ".jsonl", ".parquet"), config.overwrite, unreadable)
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        advice = "install it, or take .jsonl"
        raise UserError(f"out={out} needs the package pyarrow, which is not installed; {advice}")
    failures: list[Failure] = []
    paths = images_of("source", config.source, failures)
    task, trained, _ = load_chosen(config)
    set_tta(task, config.tta)
    prepare(trained["seed"])
    trainer = build_trainer(evaluation_trainer(trained, config.trainer, CARRIED[:4]), [], [], run_dir)
    batch_size = config.batch_size or trained["data"].get("batch_size", 64)
    how = config.num_workers, config.max_pixels, config.tta in ("five", "ten")
    loader = file_loader(paths, task.spec, batch_size, *how)
    predict = Predictor(task, trainer, config)
    with appearing(out) as folder, writer(folder / out.name) as write:
        done, failed = run(loader, predict, write, failures, folder / unreadable.name)
    log.info("predictions: %s", shown(out))
    if failed:
        advice = f"see {shown(unreadable)}; the others are done"
        raise UserError(f"{failed:,} of {done + failed:,} could not be read; {advice}")
    unreadable.unlink(missing_ok=True)  # of the output that was overwritten


class Predictor:
    """The network on the trainer's device and in its precision, as in a test."""

    def __init__(self, task: Task, trainer: Trainer, config: PredictConfig) -> None:
        self.device, self.precision = trainer.strategy.root_device, trainer.precision_plugin
        self.precision.convert_module(task).to(self.device)
        self.task = task
        self.config = config

    def __call__(self, paths: list[str], images: Tensor) -> Rows:
        """Returns the rows of `images (N, C, H, W) uint8`, or of crops of them `(N, 5, C, H, W)`; embeddings
        are of images as they are."""
        with torch.inference_mode(), self.precision.forward_context():
            images = images.to(self.device, non_blocking=True)
            with self.task.features_kept() if self.config.embedding else contextlib.nullcontext() as kept:
                answers = self.task.answers(images, self.config.top_k)
            embeddings = None if kept is None else kept.pooled().cpu().numpy()
            numbers = [row.cpu().numpy() for row in answers.numbers]
            return Rows(paths, answers.labels, numbers, embeddings, answers.several)


def run(
    loader: DataLoader[FileBatch], predict: Predictor, write: Write, failures: list[Failure], unreadable: Path
) -> tuple[int, int]:
    """Writes a row for each image, and the unreadable ones to a file; returns how many of each there were."""
    done, failed, console = 0, 0, Console()
    start = told = time.perf_counter()
    columns = TextColumn("predicting"), BarColumn(24), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)  # the source is listed as it is read
        for images, paths, refused in loader:
            if images is not None:
                write(predict(paths, images))
            failures += refused
            write_failures(unreadable, failures)
            done, failed = done + len(paths), failed + len(failures)
            failures.clear()
            now = time.perf_counter()
            line = f"{done:,} images, {done / (now - start):,.0f} images/s"
            bar.update(task, description=line)
            if not console.is_terminal and now - told > 30:
                told = now
                log.info(line)
    write_failures(unreadable, failures)  # of the source, after the last batch
    log.info(line)
    return done, failed + len(failures)


def write_failures(path: Path, failures: list[Failure]) -> None:
    """Appends paths and reasons to a CSV; without any it makes no file."""
    if failures:
        with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([] if file.tell() else [("path", "reason")])
            csv.writer(file).writerows(failures)
