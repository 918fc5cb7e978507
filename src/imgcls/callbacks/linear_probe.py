"""Linear probes: features that are computed once, and steps that suit features of any scale."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imgcls.augment.batch import BatchAugment
from imgcls.data.batch import ImageDataset
from imgcls.data.module import ImageDataModule
from imgcls.tasks.classification import ImageClassifier


def changes_images(batch: BatchAugment) -> bool:
    """Whether training sees other images than evaluation; settings of what has no probability change nothing."""
    augment = batch.augment
    mixed = augment.mixup.probability + augment.cutmix.probability
    return augment.crop != "none" or augment.policy is not None or batch.flip + augment.erase + mixed > 0


class Features(ImageDataset):
    """What goes into the head `(N, D) float32`, in place of a split's images."""

    def __init__(self, images: ImageDataset, values: Tensor) -> None:
        self.original, self.values, self.targets, self.seed = images, values, images.targets, images.seed

    def images(self, keys: Tensor) -> Tensor:
        return self.values[keys % len(self)]

    def picture(self, index: int) -> Tensor:
        return self.original.picture(index)

    def name(self, index: int) -> str:
        return self.original.name(index)


@torch.no_grad()
def features(classifier: ImageClassifier, data: ImageDataModule, split: str) -> Tensor | None:
    """Returns the input of the part that learns for all images of a split `(N, D)`, or None where the logits are not what
    that part makes of it: another head counts too, or something follows."""
    head, inputs = classifier.network.get_submodule(classifier.features_into), list[Tensor]()
    hook = head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    out: list[Tensor] = []
    classifier.network.eval()
    try:
        for batch in data.evaluation_loader(split):
            with classifier.trainer.precision_plugin.forward_context(), drawn_weights(head):
                logits = classifier.network(classifier.normalise(batch.images.to(classifier.device)))
                values = inputs[0]
                if values.ndim != 2 or not torch.allclose(head(values), logits, atol=1e-4):
                    return None
            out.append(values.float().cpu())
            inputs.clear()
    finally:
        hook.remove()
        classifier.network.train()
    return torch.cat(out)


@contextmanager
def drawn_weights(part: nn.Module) -> Iterator[None]:
    """Gives a part other weights for a while: those of a new head are 0, and its outputs say nothing."""
    kept = [parameter.clone() for parameter in part.parameters()]
    generator = torch.Generator().manual_seed(0)  # of its own: the training draws what it draws without this
    for parameter in part.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        for parameter, value in zip(part.parameters(), kept, strict=True):
            parameter.copy_(value)


def learning_part(network: nn.Module) -> str:
    """Returns the name of the largest module around the head that has no parameters but the head's: with its dropout."""
    name: str = network.head_names[0]  # type: ignore[index, assignment]
    own = set(network.get_submodule(name).parameters())
    while (around := name.rpartition(".")[0]) and set(network.get_submodule(around).parameters()) == own:
        name = around
    return name


@torch.no_grad()
def scale_of_features(classifier: ImageClassifier, images: ImageDataset) -> float:
    """Returns the power of 2 next to the root mean square of what goes into the head, of 64 training images."""
    head, inputs = classifier.network.get_submodule(classifier.head_name), list[Tensor]()
    hook = head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    count = min(len(images), 64)
    batch = images.__getitems__([i * len(images) // count for i in range(count)])
    classifier.network.eval()
    try:
        with classifier.trainer.precision_plugin.forward_context():
            classifier.raw_logits(batch.images.to(classifier.device))
    finally:
        hook.remove()
        classifier.network.train()
    root = float(inputs[0].float().square().mean().sqrt())
    return 2.0 ** round(math.log2(root)) if root > 0 and math.isfinite(root) else 1.0


def step_in_units(optimizer: Optimizer, weights: list[nn.Parameter], scale: float) -> None:
    """Makes the steps of an optimizer on `weights` those of weights `scale` times as large for inputs as many times as
    small, as if features were divided by it. A power of 2 changes no digit."""
    plain = optimizer.step

    @functools.wraps(plain)  # with the mark that a schedule left on it
    def step(closure: Callable[[], Any] | None = None, **given: Any) -> Any:
        loss = None if closure is None else closure()
        for weight in weights:
            weight.data.mul_(scale)
            if weight.grad is not None:
                weight.grad.div_(scale)
        plain(**given)
        for weight in weights:
            weight.data.div_(scale)
        return loss

    optimizer.step = step  # type: ignore[method-assign]
