"""imgcls eval: the test of a checkpoint, on its own data or on other data with the same classes."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from hydra.core.hydra_config import HydraConfig
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from imgcls.config import check as configs
from imgcls.config.allowed import allowed
from imgcls.config.paths import shown
from imgcls.config.training import Node, TrainerConfig
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import build_data, build_trainer, prepare
from imgcls.engine.evaluation import run_test
from imgcls.engine.recovery import Training
from imgcls.errors import UserError, nearest
from imgcls.report.test_report import print_summary
from imgcls.runs.checkpoints import find_checkpoint, load_content
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier

CARRIED = ("accelerator", "precision", "benchmark", "deterministic", "limit_test_batches")
EVALUATION = {
    "_target_": "lightning.pytorch.Trainer", "devices": 1, "precision": "auto", "inference_mode": True,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


@dataclass(frozen=True)
class EvalConfig:
    """Keys of conf/eval.yaml."""

    checkpoint: str
    trust: list[str]
    split: Literal["test", "val", "train", "all"]
    data: Node  # in place of the checkpoint's, or what differs from it
    trainer: Node


def main(config: EvalConfig, run_dir: Path) -> float:
    """Tests a checkpoint and writes a report; returns its top1."""
    path = find_checkpoint(config.checkpoint)
    classifier, trained = load_checkpoint(path, config.trust)
    prepare(trained["seed"])
    overrides = HydraConfig.get().overrides.task
    node = data_config(trained, config.data, classifier.spec, config.trust, overrides)
    data = build_data(node, None, trained["seed"], config.split)
    to_classes_of(classifier, data)
    trainer = build_trainer(evaluation_trainer(trained, config.trainer, CARRIED), [], [], run_dir)
    report = run_test(Training(trainer, classifier, data), run_dir)
    if report is None:  # not the first process
        return 0.0
    print_summary(f"Test of {shown(path)}", report, {"test report": shown(run_dir)})
    return report.metrics["test/top1"]


def evaluation_trainer(trained: Node, wanted: Node, carried: tuple[str, ...]) -> TrainerConfig:
    """Returns an evaluating trainer's config: the checkpoint's values of `carried` keys, and `wanted`."""
    known = {key: value for key, value in given(trained["trainer"]).items() if key in carried}
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
    own = given(wanted)
    config = {**own}  # the user's own choice
    if "_target_" not in wanted:
        kind, root = allowed(trained["data"].get("_target_"), "data", trust), str(trained["data"].get("root"))
        if "root" not in own and ("://" in root or root.startswith("local:")):
            what = f"the checkpoint's data lies at {root}"
            raise UserError(f"{what}; to read from there give data.root={root}")
        unused = ("cache", "storage_options")  # they would write files or use the network
        config = {key: value for key, value in trained["data"].items() if key not in unused}
        config |= ({"download": False} if "download" in inspect.signature(kind).parameters else {}) | own
    if "root" in own and "exclude" not in own:
        config.pop("exclude", None)  # a list of files of the root that the network was trained on
    for key in ("root", "exclude"):  # relative to where the training was started
        if config.get(key) and key not in own and "://" not in config[key]:
            config[key] = str(Path(trained["cwd"]) / Path(config[key]).expanduser())
    prepared = ["image_size", "channels", "crop_ratio", "interpolation"]
    if spec.bits is not None and not any(o.lstrip("+").startswith("data.bits=") for o in overrides):
        prepared.append("bits")
    return config | {key: getattr(spec, key) for key in prepared if key in config or key in wanted}


def to_classes_of(classifier: ImageClassifier, data: ImageDataModule) -> None:
    """Relabels the data in the checkpoint's order. Raises UserError: an unknown class, or other channels."""
    known, found = classifier.spec.class_names, data.spec.class_names
    if data.spec.channels != classifier.spec.channels:
        channels = classifier.spec.channels
        what = f"the data has {data.spec.channels} channels, the checkpoint {channels}"
        raise UserError(f"{what}; set data.channels={channels}")
    if known == found:
        return
    if unknown := [name for name in found if name not in known]:
        advice = f"which the checkpoint does not know; {nearest(unknown[0], known)}"
        raise UserError(f"the data has the class {unknown[0]!r}, {advice}")
    order = torch.tensor([known.index(name) for name in found])
    for dataset in data.sets.values():
        dataset.targets = order[dataset.targets]
    data.spec = classifier.spec


@with_config(ConfigDict(extra="allow"))
class DataConfig(TypedDict, total=False):
    """The part of a checkpoint's data config that evaluation reads, beside arguments of the data's class."""

    root: str | None
    exclude: str | None
    batch_size: Annotated[int, Field(ge=1)]


@with_config(ConfigDict(extra="allow"))
class RunConfig(TypedDict):
    """The part of a checkpoint's config that evaluation reads."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    cwd: str
    data: DataConfig
    trainer: dict[str, Any]


def load_checkpoint(path: Path, trust: Sequence[str] = ()) -> tuple[ImageClassifier, dict[str, Any]]:
    """Returns the classifier of a checkpoint and the config of its run. Raises UserError: as
    `Task.load_from_checkpoint`; or the config is missing, or of wrong types."""
    content = load_content(path)
    if not isinstance(content.get("config"), dict):
        raise UserError(f"checkpoint={path}: it was not written by imgcls train, and has no config of a run")
    missing: dict[str, Any] = {"seed": 0, "cwd": ".", "data": {}, "trainer": {}}
    config: dict[str, Any] = configs.typed(missing | content["config"], RunConfig, "the checkpoint's config")
    return ImageClassifier.restored(content, path, trust), config
