"""The task that eval, predict and export work with: of a checkpoint, or a backbone with published weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from imgcls.backbones.hub import resolved
from imgcls.backbones.preprocessing import note_difference, prepared_for
from imgcls.backbones.weights import described
from imgcls.config.build import build
from imgcls.config.paths import shown
from imgcls.config.training import Node
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.runs.checkpoints import find_checkpoint
from imgcls.tasks.published import learnt, published
from imgcls.tasks.task import Task, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Keys of eval, predict and export that say what is used: a checkpoint; or a backbone with its weights,
    and the data that says what the classes are called."""

    checkpoint: str | None
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
    left out. Raises UserError: nothing or both are chosen, or as
    `load_checkpoint` and `load_published`."""
    backbone = bool(chosen.backbone.get("_target_"))
    if chosen.checkpoint is None and not backbone:
        either = "or backbone=NAME backbone.weights=FILE data=NAME, for published weights"
        raise UserError(f"checkpoint must be given: checkpoint=…; {either}")
    if chosen.checkpoint is not None:
        if backbone:
            raise UserError("backbone=…: the checkpoint has its own; leave backbone or checkpoint out")
        path = find_checkpoint(chosen.checkpoint)
        return Loaded(*load_checkpoint(path, chosen.trust), shown(path))
    return load_published(chosen.backbone, chosen.data or {}, head)


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
    note_difference(backbone, task.spec)
    config = {"seed": 0, "cwd": str(Path.cwd()), "data": node, "trainer": {}}
    return Loaded(task, config, first.weights or str(backbone.get("name")))
