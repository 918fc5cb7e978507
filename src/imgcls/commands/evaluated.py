"""The task that eval, predict and export work with: of a checkpoint, or a backbone with published weights."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig

from imgcls.backbones.build import set_input_size
from imgcls.backbones.hub import resolved
from imgcls.backbones.preprocessing import note_difference, prepared_for
from imgcls.backbones.weights import described
from imgcls.config import check as configs
from imgcls.config.build import build
from imgcls.config.paths import shown
from imgcls.config.training import Node
from imgcls.data.imagefolder import FolderImages
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.data.module import ImageDataModule, Place
from imgcls.errors import UserError
from imgcls.runs.checkpoints import find_checkpoint
from imgcls.spec import ImageSize
from imgcls.tasks.network import Tta
from imgcls.tasks.published import learnt, published
from imgcls.tasks.task import Task, load_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Keys of eval, predict and export that say what is used: a checkpoint; or a backbone with its weights,
    and the data that says what the classes are called."""

    checkpoint: Place | None
    trust: list[str]
    backbone: Node
    data: Node | None = None


class Loaded(NamedTuple):
    """A task, the config of its run (seed, cwd, data, trainer), and what to call it."""

    task: Task
    config: Node
    name: str


def load_chosen(chosen: Chosen, head: bool = True) -> Loaded:
    """Returns what is chosen, for evaluation; without `head` published weights may have another, which is
    left out. Raises UserError: nothing or both are chosen, or as `load_checkpoint` and `load_published`."""
    backbone = bool(chosen.backbone.get("_target_"))
    if chosen.checkpoint is None and not backbone:
        either = "or backbone=NAME backbone.weights=FILE data=NAME, for published weights"
        raise UserError(f"checkpoint must be given: checkpoint=…; {either}")
    if chosen.checkpoint is not None:
        if backbone:
            raise UserError("backbone=…: the checkpoint has its own; leave backbone or checkpoint out")
        path = find_checkpoint(chosen.checkpoint)
        task, config = load_checkpoint(path, chosen.trust)
        size = (chosen.data or {}).get("image_size")
        if size is not None and asked("data.image_size"):
            set_image_size(task, size)
        return Loaded(task, config, shown(path))
    return load_published(chosen.backbone, chosen.data or {}, head)


def asked(key: str) -> bool:
    """Says whether the command line sets a key: a data set of conf/data brings values of its own."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(word.lstrip("+").startswith(f"{key}=") for word in words)


def set_image_size(task: Task, size: object) -> None:
    """Makes a task test and predict with images of another size; the share that is cut of them stays. Raises
    UserError: it is no size, or the network can't take it."""
    checked: ImageSize = configs.typed(size, ImageSize, "data.image_size")
    spec = replace(task.spec, image_size=checked)
    if spec.size != task.spec.size:
        set_input_size(task.network, task.outputs(), spec.channels, spec.image_size)
    task.spec = spec


def set_tta(task: Task, tta: Tta | None, data: ImageDataModule | None = None) -> None:
    """Makes a task test and predict with the mean over views; crops are made of the test images of `data`.
    Raises UserError: mirrored images would be of other classes, or there is nothing around the centre."""
    if tta in ("flip", "ten") and not task.spec.mirror:
        reason = "a mirrored image may be of another class (data.mirror=false)"
        raise UserError(f"tta={tta}: {reason}; expected tta=five or null")
    task.tta = tta
    if tta is not None and data is not None and type(task).averaged is Task.averaged:
        task.averaged([], torch.empty(0))  # says that it has no mean
    if tta not in ("five", "ten"):
        return
    images = data.sets["test"] if data is not None else None
    if images is not None and not isinstance(images, FolderImages):
        reason = "images of this data have nothing around the centre to crop"
        raise UserError(f"tta={tta}: {reason}; expected tta=flip or null")
    spec = task.spec if images is None else images.spec  # a set may say that its images are seen whole
    if spec.fit == "crop" and spec.resize == spec.size:
        log.warning("tta=%s: with data.crop_ratio=1 all crops of a square image are the same", tta)
    if spec.fit != "crop" and spec.resize == spec.size:
        given = f"data.fit={spec.fit} with data.crop_ratio={spec.crop_ratio:g}"
        raise UserError(f"tta={tta}: {given} leaves nothing around the centre; expected tta=flip or null")
    if images is not None:
        images.transform = evaluation_transform(images.spec, crops=True)


def load_published(backbone: Node, data: Node, head: bool) -> Loaded:
    """Returns a backbone with all of its weights, from a file or its library, for images as they expect them.
    The classes are those that the file names, else all that the data knows of; without `head` the data's own.
    Raises UserError: there are no weights, or not all fit; or no data says the classes."""
    backbone = resolved(backbone)
    first = learnt(backbone)
    if not data.get("_target_"):
        raise UserError("backbone=…: published weights do not say their classes; data=NAME does")
    given = {key: value for key, value in data.items() if value is not None}
    node = prepared_for(backbone, given, testing=True)
    source: ImageDataModule = build(node, "data", ImageDataModule, seed=0)
    names = source.spec.class_names
    if head:
        named = described(Path(first.weights)).get("class_names") if first.weights else None
        names = named or source.all_classes or names
    task = published(backbone, replace(source.spec, class_names=names), head)
    note_difference(backbone, task.spec, testing=True)
    config = {"seed": 0, "cwd": str(Path.cwd()), "data": node, "trainer": {}}
    return Loaded(task, config, first.weights or str(backbone.get("name")))
