"""Features of a linear probe: what goes into the head, computed once, and steps in units of it."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from imgcls.backbones.layers import head_names
from imgcls.data.batch import ImageDataset
from imgcls.data.module import ImageDataModule
from imgcls.tasks.task import Task


class Features(ImageDataset):
    """What goes into the head `(N, D)`, in place of a split's images."""

    def __init__(self, images: ImageDataset, values: Tensor) -> None:
        self.original, self.values, self.targets, self.seed = images, values, images.targets, images.seed

    def images(self, keys: Tensor) -> Tensor:
        return self.values[keys % len(self)]

    def picture(self, index: int) -> Tensor:
        return self.original.picture(index)

    def name(self, index: int) -> str:
        return self.original.name(index)


@contextmanager
def inputs_of(network: nn.Module, part: str) -> Iterator[list[Tensor]]:
    """Puts a network in evaluation mode for a while, and keeps what goes into a part of it in each call."""
    inputs: list[Tensor] = []
    hook = network.get_submodule(part).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    network.eval()
    try:
        yield inputs
    finally:
        hook.remove()
        network.train()


@torch.no_grad()
def features(task: Task, data: ImageDataModule, split: str) -> Tensor | None:
    """Returns the input `(N, D)` of the part that learns, for all images of a split; None where the logits
    are not what that part makes of its input: another head counts too, or something follows. The check takes
    drawn weights, as those of a new head are 0 and would show nothing."""
    network, part = task.network, task.features_into
    head, found = network.get_submodule(part), list[Tensor]()
    generator = torch.Generator().manual_seed(0)  # of its own: the training draws what it draws without this
    drawn = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in head.named_parameters()}
    within = {f"{part}.{name}": value for name, value in drawn.items()}
    with inputs_of(network, part) as inputs:
        for batch in data.evaluation_loader(split):
            with task.trainer.precision_plugin.forward_context():
                images = task.normalise(batch.images.to(task.device))
                logits = functional_call(network, within, images)
                values = inputs[0]
                if values.ndim != 2:
                    return None
                if not torch.allclose(functional_call(head, drawn, values), logits, atol=1e-4):
                    return None
            found.append(values.to(task.scale.dtype).cpu())
            inputs.clear()
    return torch.cat(found)


def learning_part(network: nn.Module) -> str:
    """Returns the name of the largest module around the head, with its dropout, that has no other weights."""
    name = head_names(network)[0]
    own = set(network.get_submodule(name).parameters())
    while (around := name.rpartition(".")[0]) and set(network.get_submodule(around).parameters()) == own:
        name = around
    return name


@torch.no_grad()
def scale_of_features(task: Task, images: ImageDataset) -> float:
    """Returns the power of 2 next to the root mean square of the head's inputs, for 64 training images."""
    count = min(len(images), 64)
    batch = images.__getitems__([i * len(images) // count for i in range(count)])
    pictures = batch.images.flatten(0, 1) if batch.images.ndim == 5 else batch.images  # each view
    context = task.trainer.precision_plugin.forward_context()
    with inputs_of(task.network, task.head_name) as inputs, context:
        task.raw_logits(pictures.to(task.device))
    root = float(inputs[0].float().square().mean().sqrt())
    return 2.0 ** round(math.log2(root)) if root > 0 and math.isfinite(root) else 1.0


def step_in_units(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], scale: float) -> None:
    """Makes an optimizer step on `weights` as if the features, their inputs, were divided by `scale`: weights
    are then `scale` times as large. A power of 2 changes no digit."""
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
