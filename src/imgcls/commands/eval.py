"""imgcls eval: tests a checkpoint, on its own data or on other data with the same classes."""

import inspect
import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from hydra.core.hydra_config import HydraConfig
from pydantic import Field

from imgcls.backbones.preprocessing import FIELDS, differs
from imgcls.backbones.preprocessing import shown as worded
from imgcls.commands.evaluated import Chosen, asked, load_chosen, set_tta
from imgcls.commands.features import features_of, neighbours, write_features
from imgcls.commands.outputs import check_out
from imgcls.config import check as configs
from imgcls.config.allowed import allowed
from imgcls.config.build import refuse_nested
from imgcls.config.paths import shown
from imgcls.config.training import Node, Nodes, TrainerConfig
from imgcls.data.loading.splits import name_absent
from imgcls.data.module import ImageDataModule, Place
from imgcls.engine.build import build_data, build_trainer, prepare
from imgcls.engine.evaluation import run_test
from imgcls.engine.recovery import Training
from imgcls.errors import UserError, nearest
from imgcls.report.origin import origin_of
from imgcls.report.report import print_summary
from imgcls.runs.checkpoints import find_checkpoint
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.network import Tta
from imgcls.tasks.scoring import Scoring
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
CARRIED = ("accelerator", "precision", "benchmark", "deterministic", "limit_test_batches")
EVALUATION = {
    "_target_": "lightning.pytorch.Trainer", "accelerator": "auto", "devices": 1, "precision": "auto",
    "inference_mode": True, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Chosen):
    """Keys of conf/eval.yaml; `data` is in place of the checkpoint's, or says what differs from it."""

    split: Literal["test", "val", "train", "all"]
    knn: Annotated[int, Field(ge=1)] | None  # neighbours
    features: Place | None  # a file
    overwrite: bool
    metrics: Nodes  # beside the checkpoint's
    tta: Tta | None
    trainer: Node


def main(config: EvalConfig, run_dir: Path) -> float:
    """Tests a checkpoint and writes a report; returns the first of its metrics. Or writes its features."""
    check_request(config)
    task, trained, name = load_chosen(config, head=not (config.knn or config.features))
    more = (ImageClassifier if config.knn else task).measures(task.spec).of_split(config.metrics)
    prepare(trained["seed"])
    overrides = HydraConfig.get().overrides.task
    node = data_config(trained, config.data or {}, task.spec, config.trust, overrides)
    trainer = build_trainer(evaluation_trainer(trained, config.trainer, CARRIED), [], [], run_dir)

    def of_split(split: str) -> ImageDataModule:
        data = build_data(node, None, trained["seed"], split)
        score_as(task, data)
        task.check_targets(data.sets["test"].targets)
        to_classes_of(task, data)
        return data

    if config.features:
        found = {split: features_of(task, of_split(split), trainer) for split in ("train", "val", "test")}
        write_features(Path(config.features).expanduser(), found, task.spec.class_names)
        return 0.0
    data = of_split(config.split)
    if config.knn:
        name = f"{name}, {config.knn} neighbours"
        task = neighbours(task, of_split("train"), trainer, config.knn)
        score_as(task, data)
        task.check_targets(data.sets["test"].targets)
    set_tta(task, config.tta, data)
    task.test_metrics.added.update(dict(more.added.items()))
    how: dict[str, Any] = {"tta": config.tta} if config.tta else {}
    how |= {"image_size": task.spec.image_size} if asked("data.image_size") else {}
    tested = None if config.checkpoint is None else find_checkpoint(config.checkpoint)
    origin = partial(origin_of, tested, data=other_data(config), split=config.split)
    report = run_test(Training(trainer, task, data), run_dir, how=how, origin=origin)
    if report is None:  # not the first process
        return 0.0
    print_summary(f"Test of {name}", report, {"test report": shown(run_dir)})
    return next(iter(report.metrics.values()))


def other_data(config: EvalConfig) -> str | None:
    """Returns what the data are called, and where they lie, if they are others than the checkpoint's."""
    kind = HydraConfig.get().runtime.choices.get("data") if HydraConfig.initialized() else None
    words = [kind, (config.data or {}).get("root")]
    return " ".join(str(word) for word in words if word) or None


def check_request(config: EvalConfig) -> None:
    """Raises UserError where keys do not go together, or the file of features can't be written."""
    if config.features:
        check_out(Path(config.features).expanduser(), (".npz",), config.overwrite, key="features")
    if config.features and (config.knn or config.tta or config.split != "test"):
        raise UserError("features=FILE has all splits and tests nothing; leave knn, tta and split out")
    if config.knn and config.split in ("train", "all"):
        fault = f"split={config.split}: with knn the train split is the memory, which would find itself"
        raise UserError(f"{fault}; choose test or val")


def evaluation_trainer(trained: Node, wanted: Node, carried: tuple[str, ...]) -> TrainerConfig:
    """Returns an evaluating trainer's config: the checkpoint's values of `carried` keys, and `wanted`. Raises
    UserError: one of the checkpoint's values is a call."""
    known = {key: value for key, value in given(trained["trainer"]).items() if key in carried}
    refuse_nested(known, "the checkpoint's trainer")
    config: TrainerConfig = configs.typed({**EVALUATION, **known, **given(wanted)}, TrainerConfig, "trainer")
    return config


def given(config: Node | None) -> Node:
    """Returns the entries that are set."""
    return {key: value for key, value in (config or {}).items() if value is not None}


def data_config(
    trained: Node, wanted: Node, spec: DataSpec, trust: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Node:
    """Returns the config of the data to test on: another set, or the run's own with what differs. Images are
    prepared as the network expects them, whichever set they are from. So are the `bits` that the network was
    trained with, unless the command line's overrides set them. Raises UserError: the checkpoint names a class
    for its data that is not on the allow-list."""
    own, config = given(wanted), data_as_trained(trained, wanted, trust)
    prepared = ["image_size", "channels", "crop_ratio", "interpolation", "fit"]
    if spec.bits is not None and not any(o.lstrip("+").startswith("data.bits=") for o in overrides):
        prepared.append("bits")
    name_not_taken(own, spec, overrides)
    taken = config.keys() | (wanted.keys() if "_target_" in wanted else ())
    return config | {key: getattr(spec, key) for key in prepared if key in taken}


def data_as_trained(trained: Node, wanted: Node, trust: Sequence[str] = ()) -> Node:
    """Returns the config of the data to test on, with images prepared as that config says. Raises UserError
    as `data_config`."""
    own = given(wanted)
    config = {**own}  # the user's own choice
    if "_target_" not in wanted:
        kind, root = allowed(trained["data"].get("_target_"), "data", trust), str(trained["data"].get("root"))
        if "root" not in own and ("://" in root or root.startswith("local:")):
            what = f"the checkpoint's data lies at {root}"
            raise UserError(f"{what}; to read from there give data.root={root}")
        refuse_nested(trained["data"], "the checkpoint's data")
        unused = ("cache", "storage_options")  # they would write files or use the network
        config = {key: value for key, value in trained["data"].items() if key not in unused}
        config |= ({"download": False} if "download" in inspect.signature(kind).parameters else {}) | own
    for key in {"exclude", "labels"} - own.keys() if {"root", "file", "variant"} & own.keys() else ():
        config.pop(key, None)  # of files of the set that the network was trained on
    local = "name" in config and (Path(trained["cwd"]) / Path(str(config["name"])).expanduser()).exists()
    # Relative to where the training was started
    for key in ("root", "file", "exclude", "labels", *(["name"] if local else [])):
        if config.get(key) and key not in own and "://" not in config[key]:
            config[key] = str(Path(trained["cwd"]) / Path(config[key]).expanduser())
    return config


def name_not_taken(own: Node, spec: DataSpec, overrides: Sequence[str]) -> None:
    """Warns of images that the command line asks for, where the network expects others."""
    words = {override.lstrip("+").partition("=")[0] for override in overrides}
    for key in (*FIELDS, "channels"):
        if f"data.{key}" in words and key in own and differs(own[key], getattr(spec, key)):
            expects = "%s=%s is not taken: the network expects %s"
            log.warning(expects, f"data.{key}", worded(own[key]), worded(getattr(spec, key)))


def score_as(task: Task, data: ImageDataModule) -> None:
    """Lets the task score its answers as the data's publication says. Raises UserError: the task gives other
    answers than one class."""
    if isinstance(task, ImageClassifier):
        task.scored = Scoring(any_label=data.any_label)
    elif data.own_classes_only or data.any_label:
        kind = type(task).__name__
        raise UserError(f"the data scores one class for an image; the checkpoint's task is {kind}")


def to_classes_of(task: Task, data: ImageDataModule) -> None:
    """Relabels the data by class name to the checkpoint's order. Raises UserError: the data has a class that
    the checkpoint does not know, or other channels."""
    known, found = task.spec.class_names, data.spec.class_names
    if data.spec.channels != task.spec.channels:
        channels = task.spec.channels
        what = f"the data has {data.spec.channels} channels, the checkpoint {channels}"
        raise UserError(f"{what}; set data.channels={channels}")
    if known == found:
        return
    places = {name: place for place, name in enumerate(known)}
    if data.any_label and 0 < len(set(found) & places.keys()) < len(found):
        found = keep_known(data, places)
    if unknown := [name for name in found if name not in places]:
        advice = f"which the checkpoint does not know; {nearest(unknown[0], known)}"
        raise UserError(f"the data has the class {unknown[0]!r}, {advice}")
    order = torch.tensor([places[name] for name in found])
    if isinstance(task, ImageClassifier) and data.own_classes_only:
        others = torch.ones(len(known), dtype=torch.bool).index_fill(0, order, False)
        task.scored = replace(task.scored, others=others)
    for dataset in data.sets.values():
        targets = dataset.targets
        if targets.ndim == 1:
            dataset.targets = order[targets]
        else:  # a column for each label
            dataset.targets = targets.new_zeros(len(targets), len(known)).index_copy(1, order, targets)
    name_absent(data.sets["test"].targets, known, data.tested)
    data.spec = task.spec


def keep_known(data: ImageDataModule, known: Container[str]) -> list[str]:
    """Keeps of a test set with several labels those that a checkpoint knows, and the images that have one;
    returns the names of these labels."""
    names, images = data.spec.class_names, data.sets["test"]
    columns = [place for place, name in enumerate(names) if name in known]
    targets = images.targets[:, columns]
    rows = targets.amax(1).nonzero().flatten()
    if not len(rows):
        raise UserError("no image of the test has a label that the checkpoint knows; expected some")
    kept = images.part(rows)
    kept.targets = targets[rows]
    data.sets["test"] = kept
    words = "%s of %s test images have a label among the %s of %s classes that the checkpoint knows"
    log.warning(words, f"{len(rows):,}", f"{len(images):,}", f"{len(columns):,}", f"{len(names):,}")
    return [names[place] for place in columns]
