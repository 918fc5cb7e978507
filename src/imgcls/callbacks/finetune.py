"""Finetune callback: says which layers learn in which epoch, and how fast each learns.

What learns is a function of the epoch, so a resumed run goes on as it would have. Frozen layers are in
evaluation mode: their batch norms keep the statistics they came with, and their dropout is off.
"""

import logging
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from pydantic import Field
from torch import nn

from imgcls.backbones.layers import head_names, layers
from imgcls.callbacks import linear_probe
from imgcls.data.batch import ImageDataset
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.task import data_of

log = logging.getLogger(__name__)
Share = Annotated[float, Field(gt=0, le=1)]


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

    def __init__(
        self,
        head_epochs: Annotated[int, Field(ge=0)] | None = 0,
        layer_epochs: Annotated[float, Field(ge=0)] = 0,
        body_lr: Share = 1.0,
        layer_decay: Share = 1.0,
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
        assert isinstance(pl_module, ImageClassifier)
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
        """Prepares a linear probe."""
        assert isinstance(pl_module, ImageClassifier)
        if self.head_epochs is not None:
            return
        self.reuse(trainer, pl_module)
        if self.scale is None:
            self.scale = linear_probe.scale_of_features(pl_module, data_of(trainer).sets["train"])
        heads = [pl_module.network.get_submodule(name) for name in head_names(pl_module.network)]
        weights = [p for head in heads for p in head.parameters() if p.ndim > 1]
        for optimizer in trainer.optimizers:
            linear_probe.step_in_units(optimizer, weights, self.scale)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the layers of this epoch learn."""
        assert isinstance(pl_module, ImageClassifier)
        epoch, first = trainer.current_epoch, trainer.current_epoch == 0 or self.lowest is None
        changed = self.freeze(pl_module.network, epoch)
        for optimizer in trainer.optimizers:
            give_momentum(optimizer)
        if changed and isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model = pl_module  # wrapped anew: DDP waits for what learned when it began
            trainer.strategy.configure_ddp()
            first = True
        if trainer.is_global_zero and (first or self.layer_epochs or epoch == self.head_epochs):
            self.log_what_learns(pl_module.network, epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.images:
            data_of(trainer).sets |= self.images
            self.images = {}

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]

    def lowest_layer(self, epoch: int) -> int:
        top = max(self.layers.values())
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

    def log_what_learns(self, network: nn.Module, epoch: int) -> None:
        learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
        total = sum(p.numel() for p in network.parameters())
        first = next(name for name, parameter in network.named_parameters() if parameter.requires_grad)
        place, counts = first.rpartition(".")[0] or first, (f"{learning:,}", f"{total:,}")
        log.info("epoch %d: %s of %s parameters learn, from %s on", epoch + 1, *counts, place)

    def reuse(self, trainer: Trainer, classifier: ImageClassifier) -> None:
        """Puts features in the place of images where that changes nothing but the time."""
        data = data_of(trainer)
        alone = trainer.world_size == 1 and data.on_error == "raise"
        alike = classifier.distil is None and not linear_probe.changes_images(classifier.augment)
        if not (self.reuse_features and alone and alike):
            return
        classifier.features_into = linear_probe.learning_part(classifier.network)
        train, val = (linear_probe.features(classifier, data, split) for split in ("train", "val"))
        if train is None or val is None:
            log.info("the features of this network can't be reused: there is more after its head")
            return
        self.images = {split: data.sets[split] for split in ("train", "val")}
        data.sets["train"] = linear_probe.Features(data.sets["train"], train)
        data.sets["val"] = linear_probe.Features(data.sets["val"], val)
        log.info("features computed once: %d numbers an image", train.shape[1])


def give_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that begin to learn a momentum of zero, where others of their group have one: torch's
    fused SGD takes that of all or none. Without dampening, the first step is the same with it."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        missing = [p for p in group["params"] if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        if group["fused"] and len(missing) < len(group["params"]):
            for parameter in missing:
                if parameter.requires_grad:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
