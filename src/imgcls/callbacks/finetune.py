"""Finetune callback: says which layers learn in which epoch, and how fast each learns.

What learns is a function of the epoch, so a resumed run goes on as it would have. Frozen layers are in
evaluation mode: their batch norms keep the statistics they came with, and their dropout is off.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.func import functional_call

from imgcls.augment.batch import changes_images
from imgcls.backbones.layers import head_names, layers
from imgcls.data.batch import ImageDataset
from imgcls.data.module import ImageDataModule
from imgcls.optim import give_momentum
from imgcls.spec import Part
from imgcls.tasks.network import data_of
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)


class Finetune(Callback):
    """Trains the head alone first, then more of the network.

    Args:
        head_epochs: epochs in which only the head learns; null: all of them (a linear probe).
        layer_epochs: epochs after which one more layer learns, from the head down (Howard and Ruder 2018);
            0: after `head_epochs` all layers learn.
        body_lr: learning rate of the body, as a share of the head's.
        layer_decay: learning rate of each layer, as a share of that of the layer above (Bao et al. 2021).
        reuse_features: in a linear probe without augmentation, compute what goes into the head once, before
            any dropout of the head's; this changes the time that training takes and nothing else.

    In a linear probe the optimizer sees the head's weights in units of their inputs, so that one learning
    rate fits features of any scale.
    """

    stays = False  # at the layers of the first epoch, however long that is tried

    def __init__(
        self,
        head_epochs: NonNegativeInt | None = 0,
        layer_epochs: NonNegativeFloat = 0,
        body_lr: Part = 1.0,
        layer_decay: Part = 1.0,
        reuse_features: bool = True,
    ) -> None:
        self.head_epochs, self.layer_epochs = head_epochs, layer_epochs
        self.body_lr, self.layer_decay, self.reuse_features = body_lr, layer_decay, reuse_features
        self.layers: dict[str, int] = {}  # the layer of each parameter, 0 at the input
        self.lowest: int | None = None  # the lowest layer that learns now
        self.images: dict[str, ImageDataset] = {}  # the sets in place of which features are read
        self.scale: float | None = None  # of the features, in a linear probe

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the learning rate of each layer, and freezes before a strategy looks at what learns."""
        assert isinstance(pl_module, Task)
        if stage != "fit":
            return
        self.layers = layers(pl_module.network)
        top = max(self.layers.values())
        pl_module.rate_scales = {}
        for name, parameter in pl_module.network.named_parameters():
            below = top - self.layers[name]
            pl_module.rate_scales[name] = self.body_lr * self.layer_decay**below if below else 1.0
            parameter.requires_grad_(self.layers[name] >= self.lowest_layer(0))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if self.head_epochs is not None:
            return
        self.reuse(trainer, pl_module)
        if self.scale is None:
            self.scale = scale_of_features(pl_module, data_of(trainer).sets["train"])
        heads = [pl_module.network.get_submodule(name) for name in head_names(pl_module.network)]
        weights = [p for head in heads for p in head.parameters() if p.ndim > 1]
        for optimizer in trainer.optimizers:
            step_in_units(optimizer, weights, self.scale)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        epoch, first = trainer.current_epoch, trainer.current_epoch == 0 or self.lowest is None
        changed = self.freeze(pl_module.network, epoch)
        for optimizer in trainer.optimizers:
            give_momentum(optimizer)
        if changed and isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model = pl_module  # wrapped anew: DDP waits for what learned when it began
            trainer.strategy.configure_ddp()
            first = True
        if trainer.is_global_zero and (first or self.layer_epochs or epoch == self.head_epochs):
            named = dict(pl_module.network.named_parameters())
            learning = [name for name, parameter in named.items() if parameter.requires_grad]
            counts = [f"{sum(named[name].numel() for name in names):,}" for names in (learning, named)]
            place = learning[0].rpartition(".")[0] or learning[0]
            log.info("epoch %d: %s of %s parameters learn, from %s on", epoch + 1, *counts, place)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.images:
            data_of(trainer).sets |= self.images
            self.images = {}

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]

    def lowest_layer(self, epoch: int) -> int:
        top, epoch = max(self.layers.values()), 0 if self.stays else epoch
        if self.head_epochs is None or epoch < self.head_epochs:
            return top
        if not self.layer_epochs:
            return 0
        return max(top - 1 - int((epoch - self.head_epochs) / self.layer_epochs), 0)

    def freeze(self, network: nn.Module, epoch: int) -> bool:
        """Freezes all but the layers of an epoch; returns whether that is a change."""
        before, self.lowest = self.lowest, self.lowest_layer(epoch)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(self.layers[name] >= self.lowest)
        network.eval()
        for module in network.modules():
            own = list(module.parameters())
            if own and all(parameter.requires_grad for parameter in own):
                module.train()
        return before != self.lowest

    def reuse(self, trainer: Trainer, task: Task) -> None:
        """Puts features in the place of images where that changes nothing but the time."""
        data = data_of(trainer)
        alone = trainer.world_size == 1 and data.on_error == "raise"
        alike = not task.loss_terms and not changes_images(task.augment)
        if not (self.reuse_features and alone and alike):
            return
        task.features_into = learning_part(task.network)
        train, val = (features(task, data, split) for split in ("train", "val"))
        if train is None or val is None:
            log.info("the features of this network can't be reused: there is more after its head")
            return
        self.images = {split: data.sets[split] for split in ("train", "val")}
        data.sets |= {"train": Features(data.sets["train"], train), "val": Features(data.sets["val"], val)}
        log.info("features computed once: %d numbers an image", train.shape[1])


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
            found.append(values.float().cpu())
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
