"""Published weights: the classifier of a backbone's config whose weights are a library's or a file's."""

from dataclasses import asdict
from functools import partial

from imgcls.backbones.build import build_network
from imgcls.backbones.preprocessing import of_library
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
    """Returns the classifier, for evaluation, with all of its weights; without `head` that may be a new one.
    Raises UserError: the weights are of another number of classes, or do not all fit."""
    library = of_library(backbone) if learnt(backbone).weights is None else None
    if head and library is not None and library.classes != spec.num_classes:
        known = f"{library.origin} has weights for {library.classes} classes, the data {spec.num_classes}"
        raise UserError(f"backbone.pretrained=true: {known}; train a head for them with imgcls train")
    return ImageClassifier(asdict(spec), backbone, network_of=partial(build_network, whole=head)).eval()
