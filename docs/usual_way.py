"""Measures the usual way beside imgcls, in turns, in one process; prints the tables of docs/performance.md.

    python docs/usual_way.py training data=fashion_mnist data.root=…
    python docs/usual_way.py loading data.root=FOLDER workers=2 size=224 packed=DIR table=FILE …
    python docs/usual_way.py metrics

`training`: the network of `backbone=simple_cnn` as templates train it (a torchvision data set of PIL images,
v2 transforms of each sample, float32 batches, torchmetrics' forward and a logged value in each step,
Lightning's Rich bar) against `imgcls train` with its own default logging, metrics and bar.

`loading`: ImageFolder with the transforms of torchvision's reference script (PIL, RandomResizedCrop, flip,
float32, normalise, for each sample) against `data=imagefolder` and the same pictures as packs, tables and
sets of Hugging Face's datasets, all with the same workers.
"""

import functools
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchmetrics
import wandb
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from imgcls.backbones.simple_cnn import simple_cnn
from imgcls.commands.build import build_all, build_parts, read_config
from imgcls.commands.verb import CONF
from imgcls.config import check as configs
from imgcls.engine.build import build_data, build_trainer, keep_freed_memory, prepare
from imgcls.loggers.progress import EpochProgress
from imgcls.tasks.measures import Evaluation
from imgcls.tasks.metrics import MeanLoss

ROUNDS, SECONDS = 7, 3.0
SOURCES = {  # the key of each source's place
    "packed": "data.root",
    "table": "data.file",
    "huggingface": "data.name",
}
UNSEEN = {"file": io.StringIO(), "force_terminal": True}  # of Lightning's bar: drawn, but not seen


class Stopwatch(Callback):
    """Takes the images a second of `steps` steps after the first few, then stops the training."""

    def __init__(self, steps: int, skipped: int = 5) -> None:
        self.steps, self.skipped, self.step, self.images, self.start, self.rate = (
            steps,
            skipped,
            0,
            0,
            0.0,
            0.0,
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *given: Any) -> None:
        self.step += 1
        self.images += len(given[1][1])
        if self.step == self.skipped:
            self.images, self.start = 0, time.perf_counter()
        if self.step == self.skipped + self.steps:
            self.rate = self.images / (time.perf_counter() - self.start)
            trainer.should_stop = True


class UsualModule(LightningModule):
    """As templates write it."""

    def __init__(self, classes: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        self.network = simple_cnn(classes, channels, size, width)
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=classes)
        self.mean_loss = torchmetrics.MeanMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self.network(images)
        loss = nn.functional.cross_entropy(logits, targets)
        self.mean_loss(loss)
        self.accuracy(logits.argmax(1), targets)
        self.log("train/loss", self.mean_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def composed(*overrides: str) -> dict[str, Any]:
    names = ["run_dir=.", "cwd=.", "names={run: bench, data: data, backbone: backbone}"]
    with initialize_config_dir(str(CONF)):
        return configs.plain(compose("train", [*names, *overrides]))


def usual_training(root: str, width: int, batch_size: int, workers: int, steps: int) -> float:
    """Trains on Fashion-MNIST's files in torchvision's layout; returns images a second."""
    transform = v2.Compose(
        [
            v2.RandomCrop(28, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.2860,), (0.3530,)),
        ]
    )
    data = datasets.FashionMNIST(root, train=True, transform=transform)
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    watch = Stopwatch(steps)
    keep_freed_memory(False)  # imgcls asks the C library for this; the usual way does not
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[RichProgressBar(console_kwargs=UNSEEN), watch],
            logger=CSVLogger(folder),
            max_epochs=100,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(UsualModule(10, 1, 28, width), loader)
    return watch.rate


def our_training(steps: int, overrides: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        plain = composed(*overrides, f"run_dir={folder}", "logger.wandb.mode=offline")
        config = read_config(plain)
        watch = Stopwatch(steps)
        data, task, callbacks, _ = build_parts(config)
        callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        for progress in (c for c in callbacks if isinstance(c, EpochProgress)):
            progress.console = Console(**UNSEEN)
        endless = config.trainer.model_copy(update={"max_epochs": 10**6, "limit_val_batches": 0})
        loggers = build_all(config.logger, "logger", Logger)
        trainer = build_trainer(endless, [*callbacks, watch], loggers, Path(folder))
        keep_freed_memory()
        trainer.fit(task, datamodule=data)
        wandb.finish()
    return watch.rate


def training(overrides: list[str]) -> None:
    """Compares whole trainings; the usual way has two workers to load its data, imgcls has none."""
    root = next(o.partition("=")[2] for o in overrides if o.startswith("data.root="))
    for width, batch_size in itertools.product((32, 16), (128, 512)):
        steps = 5000 // batch_size * 32 // width
        settings = [*overrides, f"data.batch_size={batch_size}", f"backbone.width={width}"]
        ways = {
            "imgcls": functools.partial(our_training, steps, settings),
            "usual": functools.partial(usual_training, root, width, batch_size, 2, steps),
        }
        table(f"training, width {width}, batch {batch_size}", ways)


def loading(overrides: list[str]) -> None:
    """Compares loaders alone, with the same workers."""
    given = [tuple(override.split("=", 1)) for override in overrides]
    settings = {"workers": "2", "size": "224"} | dict(given)
    root, workers, size = settings["data.root"], int(settings["workers"]), int(settings["size"])
    sources = {"data=imagefolder": [f"data.root={root}"]}
    for kind, place in given:
        if kind in SOURCES:
            sources[f"data={kind} {place}"] = [f"{SOURCES[kind]}={place}"]
    transform = v2.Compose([
        v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    usual = datasets.ImageFolder(f"{root}/train" if Path(root, "train").is_dir() else root, transform)
    loader = DataLoader(usual, 32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    keep_freed_memory(False)  # imgcls asks the C library for this, workers have it from their parent
    # Without workers all is done in this process: its own time is no other process's.
    clock = time.perf_counter if workers else time.process_time
    ways = {"usual": timed(iter(Epochs(loader)), clock)}
    keep_freed_memory()
    common = [f"data.num_workers={workers}", "data.batch_size=32", f"data.image_size={size}"]
    for name, words in sources.items():
        config = composed(name.split()[0], *words, *common, "data.val_fraction=0.5")
        data = build_data(config["data"], config["augment"], 0)
        ways[name] = timed(iter(Epochs(data.train_dataloader())), clock)
    table(f"loading, {workers} workers, {size} pixels", ways)


def metrics(overrides: list[str]) -> None:
    """Compares a batch's metrics, 256 images of 1,000 classes, in milliseconds."""
    common: dict[str, Any] = {"num_classes": 1000, "validate_args": False}
    theirs = torchmetrics.MetricCollection({
        "top1": torchmetrics.classification.MulticlassAccuracy(average="micro", **common),
        "top5": torchmetrics.classification.MulticlassAccuracy(average="micro", top_k=5, **common),
        "precision": torchmetrics.classification.MulticlassPrecision(average="macro", **common),
        "recall": torchmetrics.classification.MulticlassRecall(average="macro", **common),
        "f1": torchmetrics.classification.MulticlassF1Score(average="macro", **common),
        "calibration_error": torchmetrics.classification.MulticlassCalibrationError(n_bins=15, **common),
    })  # fmt: skip
    ours, mean, top1 = (
        Evaluation(1000),
        MeanLoss(),
        torchmetrics.classification.MulticlassAccuracy(average="micro", **common),
    )
    logits, targets, loss = torch.randn(256, 1000), torch.randint(0, 1000, (256,)), torch.tensor(1.0)
    ways: dict[str, Callable[[], object]] = {
        "torchmetrics' forward": lambda: theirs(logits, targets),
        "torchmetrics' update": lambda: theirs.update(logits, targets),
        "imgcls, evaluation": lambda: ours.update(logits, targets),
        "imgcls, training": lambda: (mean.update(loss, 256), top1.update(logits, targets)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(50):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"  {name:<30}{1000 * statistics.median(values):.2f} ms a batch")


class Epochs:
    """The loader, anew for each epoch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self.loader


def timed(batches: Iterator[Any], clock: Callable[[], float]) -> Callable[[], float]:
    next(batches)  # starts the workers

    def rate() -> float:
        for _ in range(8):  # made ready while others had their turn
            next(batches)
        images, start = 0, clock()
        while (seconds := clock() - start) < SECONDS:
            images += len(next(batches)[1])
        return images / seconds

    return rate


def table(title: str, ways: dict[str, Callable[[], float]]) -> None:
    """Gives each way `ROUNDS` turns; prints medians, and the median of the ratios to the usual way."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for name in [*ways, *list(ways) * ROUNDS]:
        rates[name].append(ways[name]())
    rates = {name: values[1:] for name, values in rates.items()}  # the first turn of each warms up
    print(f"\n{title}: images a second (lowest to highest)", flush=True)
    bases = [name for name in ways if name.startswith(("usual", "data=imagefolder"))]
    for name, values in rates.items():
        ratios = [
            f"{statistics.median(a / b for a, b in zip(values, rates[base], strict=True)):.2f} times {base}"
            for base in bases
            if base != name
        ]
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"  {name:<40}{statistics.median(values):>8,.0f} {spread}  {'; '.join(ratios)}")


if __name__ == "__main__":
    prepare(0)
    {"training": training, "loading": loading, "metrics": metrics}[sys.argv[1]](sys.argv[2:])
