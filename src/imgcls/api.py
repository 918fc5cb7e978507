"""imgcls from Python: what a project or a notebook imports. These names stay; all else may change.

The project is that of the working directory, as with the command: what its pyproject.toml says in
`[tool.imgcls]`. Its package can be imported, and checkpoints may name it.

import imgcls

run = imgcls.train(["data=digits", "trainer.max_epochs=5"])
run.metrics["test/top1"], run.curves()
model = imgcls.load(run.path)
model.predict("photo.jpg").labels
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from torch import Tensor

from imgcls import __main__ as command
from imgcls.augment.batch import BatchAugment
from imgcls.commands.eval import data_config, evaluation_trainer
from imgcls.commands.verb import enter_project, logging_kept
from imgcls.config import check as configs
from imgcls.config import paths
from imgcls.config.command_line import check_groups, explain
from imgcls.config.paths import CONF
from imgcls.data.batch import Batch, ImageDataset, in_channels
from imgcls.data.files import Files
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.data.memory import MemoryDataModule
from imgcls.data.module import ImageDataModule
from imgcls.data.pictures import Picture, pixels, several
from imgcls.engine.build import build_data, build_trainer, prepare
from imgcls.errors import UserError
from imgcls.report.figures import as_picture, draw_confusion, draw_mistakes, under_heat
from imgcls.report.report import Report
from imgcls.runs.checkpoints import find_checkpoint
from imgcls.runs.read import read_runs
from imgcls.runs.run_files import best_epoch, curves, read_config, test_metrics
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.metrics import Answers, Measures, Outputs
from imgcls.tasks.task import Stage, Task, load_checkpoint
from imgcls.tools.compare.table import differing_config

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Answers", "Batch", "DataSpec", "ImageClassifier", "ImageDataModule", "ImageDataset",
    "ImageFolder", "Measures", "MemoryDataModule", "Model", "Outputs", "Prediction", "Report", "Run", "Stage",
    "Task", "UserError", "as_picture", "augmented", "differing_config", "draw_confusion", "draw_mistakes",
    "load", "load_data", "read_runs", "train", "under_heat",
]  # fmt: skip
BATCH = 64  # images that a model gets at once


@dataclass(frozen=True)
class Run:
    """A run directory. What it is asked for raises UserError where there is no run in it."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The config that it was trained with, resolved."""
        if not Path(self.path, "config.yaml").is_file():
            raise UserError(f"{self.path}: there is no run in it (no config.yaml)")
        return read_config(Path(self.path))

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured in the best epoch (`val/top1`, …) and in the test (`test/top1`, …)."""
        monitor = self.config["optimized_metric"]
        best = best_epoch(self.path, monitor if isinstance(monitor, str) else monitor[0])
        return {name.removeprefix("best/"): value for name, value in best.items()} | test_metrics(self.path)

    @functools.cached_property
    def model(self) -> "Model":
        """Its best checkpoint."""
        return load(self.path)

    def curves(self) -> "pd.DataFrame":
        """Returns what it logged, a row for each epoch."""
        return curves(self.path)


class Prediction(NamedTuple):
    """What a model says of an image, the best first; of a task without labels numbers alone."""

    labels: list[str]
    probabilities: list[float]


def train(overrides: Sequence[str] = ()) -> Run:
    """Trains as `imgcls train` does with these arguments, in this process, and returns the run.

    Raises:
        UserError: with the line that the command would print.
    """
    if any(word in ("-m", "--multirun") or word == "hydra.mode=MULTIRUN" for word in overrides):
        raise UserError("imgcls.train runs one training; for a sweep call it for each, or use the command")
    GlobalHydra.instance().clear()
    before, sys.argv = sys.argv, ["imgcls"]
    try:
        with logging_kept():
            outcomes = command.run("train", list(overrides))
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise UserError(ended.code) from ended.__context__
        raise
    finally:
        sys.argv = before
    if not outcomes:
        raise UserError(f"{' '.join(overrides)}: this shows something and trains nothing")
    return Run(outcomes[-1][1])


def load_data(overrides: Sequence[str] = ()) -> ImageDataModule:
    """Returns the data that `imgcls train` would use with these arguments; its splits are in `.sets`.

    Raises:
        UserError: with the line that the command would print.
    """
    enter_project()
    GlobalHydra.instance().clear()
    places = ["run_dir=.", "cwd=.", "names={run: null, data: null, backbone: null}"]
    words = paths.quoted(check_groups("train", list(overrides)))
    try:
        with initialize_config_dir(str(CONF)):
            config = configs.plain(compose("train", [*places, *words]))
    except HydraException as error:
        raise UserError(explain(error)) from error
    return build_data(config["data"], config["augment"], config["seed"])


def augmented(data: ImageDataModule, indices: Sequence[int], epoch: int = 0) -> Tensor:
    """Returns training images `(N, C, H, W) uint8`, or views of them `(N, V, C, H, W)`, as the network gets
    them in an epoch, not normalised."""
    train = data.sets["train"]
    torch.manual_seed(epoch)
    batch = train.__getitems__([epoch * len(train) + index for index in indices])
    return BatchAugment(data.augment, data.spec).shown(batch.images, batch.targets)[0]


def load(run: str | Path, trust: Sequence[str] = (), device: str | None = None) -> "Model":
    """Returns the model of a run directory (its best checkpoint) or of a checkpoint file.

    Args:
        run: the directory or file.
        trust: packages, all of whose code may run, that its task or network is from.
        device: "cpu", "cuda", …; None: the GPU if there is one.

    Raises:
        UserError: it is missing, damaged, or names code that is not allowed; nothing of it was run then.
    """
    task, config = load_checkpoint(find_checkpoint(str(run)), trust)
    best = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return Model(task.to(device or best), config, tuple(trust))
    except RuntimeError as error:
        raise UserError(f"device={device}: {str(error).splitlines()[0]}") from error


class Model:
    """A trained task, for pictures as they come: paths, Pillow's images, arrays `(H, W)` or `(H, W, C)`
    uint8, or tensors `(C, H, W) uint8`. `task` is the LightningModule, `config` its run's."""

    def __init__(self, task: Task, config: dict[str, Any], trust: Sequence[str] = ()) -> None:
        self.task, self.config, self.trust = task.eval(), config, trust
        self.files, self.transform = Files(task.spec), evaluation_transform(task.spec)

    @property
    def spec(self) -> DataSpec:
        """Class names and what else it knows of its data."""
        return self.task.spec

    def data(self) -> ImageDataModule:
        """Returns the data that it was trained on, as evaluation sees it."""
        node = data_config(self.config, {}, self.spec, self.trust)
        keys = {key: value for key, value in node.items() if key not in ("device", "decode")}
        return build_data(keys, None, self.config["seed"])

    def test(self, data: ImageDataModule | None = None) -> Report:
        """Returns the report of a test, on the test split of its own data by default."""
        data = data or self.data()
        prepare(self.config["seed"])
        config = evaluation_trainer(self.config, {"accelerator": self.task.device.type}, ("precision",))
        trainer = build_trainer(config, [], [], Path())
        (found,) = trainer.test(self.task, datamodule=data, verbose=False)
        metrics = {name: float(value) for name, value in found.items()}
        return self.task.report(metrics, data.sets["test"])

    @torch.inference_mode()
    def predict(self, images: Picture | Iterable[Picture], top_k: int | None = None) -> Any:
        """Returns a `Prediction` for an image, or a list of them for several, with `top_k` labels at most; by
        default 5, or of a task with several labels all that are given. Raises UserError: a file can't be
        read, or an array is none of an image."""
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise UserError(f"top_k={top_k}: expected 1 or more, or None")
        found: list[Prediction] = []
        for batch in self.batches(several(images)):
            answers = self.task.answers(batch, top_k)
            labels = answers.labels or [[] for _ in answers.numbers]
            numbers = [row.float().cpu().tolist() for row in answers.numbers]
            found += map(Prediction, labels, numbers)
        return found[0] if isinstance(images, Picture) else found

    def embed(self, images: Picture | Iterable[Picture]) -> Tensor:
        """Returns what goes into the network's head for an image or several: `(N, D) float32`. Raises
        UserError: as `predict`, or there is no image."""
        with torch.inference_mode():
            found = []
            for batch in self.batches(several(images)):
                with self.task.features_kept() as kept:
                    self.task(batch)
                found.append(kept.pooled().cpu())
        if not found:
            raise UserError("there is no image to embed; expected one or more")
        return torch.cat(found)

    def batches(self, images: Iterable[Picture]) -> Iterable[Tensor]:
        """Yields images `(N, C, H, W) uint8`, prepared as in evaluation, on the model's device."""
        held = list[Tensor]()
        for image in images:
            held.append(self.prepared(image))
            if len(held) == BATCH:
                yield torch.stack(held).to(self.task.device)
                held.clear()
        if held:
            yield torch.stack(held).to(self.task.device)

    def prepared(self, image: Picture) -> Tensor:
        """Returns an image `(C, H, W) uint8` as evaluation would."""
        if isinstance(image, str | Path):
            images, _, failures = self.files.__getitems__([str(image)])
            if images is None:
                raise UserError(f"{image}: {failures[0][1]}")
            return images[0]
        prepared: Tensor = self.transform(in_channels(pixels(image, self.spec.bits), self.spec.channels))
        return prepared
