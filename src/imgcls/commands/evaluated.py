"""The task that eval, predict and export work with: of a checkpoint, or a backbone with published weights."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgcls.backbones.build import build_network
from imgcls.backbones.hub import resolved
from imgcls.backbones.preprocessing import note_difference, of_library, prepared_for
from imgcls.backbones.weights import described
from imgcls.config.build import build
from imgcls.config.paths import shown
from imgcls.config.training import FirstWeights, Node
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.runs.checkpoints import find_checkpoint
from imgcls.tasks.classification import ImageClassifier
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


def load_chosen(chosen: Chosen) -> Loaded:
    """Returns what is chosen, for evaluation. Raises UserError: nothing or both are chosen, or as
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
    return load_published(chosen.backbone, chosen.data or {})


def load_published(backbone: Node, data: Node) -> Loaded:
    """Returns a backbone with all of its weights, from a file or its library, for images as they expect them.
    The classes are those that the file names, else all that the data knows of. Raises UserError: there are no
    weights, or not all fit; or no data says the classes."""
    backbone = resolved(backbone)
    first = FirstWeights.read(backbone)
    if first.weights is None and not first.pretrained:
        advice = "give backbone.weights=FILE or backbone.pretrained=true"
        raise UserError(f"backbone=…: it has not learnt; {advice}")
    if not data.get("_target_"):
        raise UserError("backbone=…: published weights do not say their classes; data=NAME does")
    given = {key: value for key, value in data.items() if value is not None}
    node = prepared_for(backbone, given, testing=True)
    source: ImageDataModule = build(node, "data", ImageDataModule, seed=0)
    named = described(Path(first.weights)).get("class_names") if first.weights else None
    spec = replace(source.spec, class_names=named or source.all_classes or source.spec.class_names)
    library = of_library(backbone) if first.weights is None else None
    if library is not None and library.classes != spec.num_classes:
        known = f"{library.origin} has weights for {library.classes} classes, the data {spec.num_classes}"
        raise UserError(f"backbone.pretrained=true: {known}; train a head for them with imgcls train")
    network_of = partial(build_network, whole=True)
    task = ImageClassifier(asdict(spec), backbone, network_of=network_of)
    note_difference(backbone, spec, testing=True)
    config = {"seed": 0, "cwd": str(Path.cwd()), "data": node, "trainer": {}}
    return Loaded(task.eval(), config, first.weights or str(backbone.get("name")))
