"""Published weights: the classifier of a backbone's config whose weights are a library's or a file's."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from imgcls.backbones.build import build_network
from imgcls.backbones.preprocessing import of_library
from imgcls.backbones.weights import described
from imgcls.config.training import FirstWeights, Node
from imgcls.errors import UserError
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier


def learnt(backbone: Node) -> FirstWeights:
    """Returns where the weights of a backbone come from. Raises UserError: it has none."""
    first = FirstWeights.read(backbone)
    if first.weights is None and not first.pretrained:
        advice = "give backbone.weights=FILE or backbone.pretrained=true"
        raise UserError(f"backbone=…: it has not learnt; {advice}")
    return first


def published(backbone: Node, spec: DataSpec, head: bool = True) -> ImageClassifier:
    """Returns the classifier, for evaluation, with all of its weights, and the temperature that their file
    says; without `head` that may be a new one. Raises UserError: the weights are of another number of
    classes, or of several labels, or do not all fit."""
    first = learnt(backbone)
    library = of_library(backbone) if first.weights is None else None
    if head and library is not None and library.classes != spec.num_classes:
        known = f"{library.origin} has weights for {library.classes} classes, the data {spec.num_classes}"
        raise UserError(f"backbone.pretrained=true: {known}; train a head for them with imgcls train")
    said = described(Path(first.weights)) if head and first.weights else {}
    if said.get("activation") == "sigmoid":
        fault = f"weights={first.weights}: they are of several labels for an image (task=multilabel)"
        raise UserError(f"{fault}; give checkpoint=RUN in place of a backbone")
    task = ImageClassifier(asdict(spec), backbone, network_of=partial(build_network, whole=head)).eval()
    task.set_temperature(said.get("temperature", 1.0), f"weights={first.weights}")
    return task
