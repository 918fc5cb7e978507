"""Finetune callback: says which layers learn in which epoch, and how fast each learns.

What learns is a function of the epoch, so a resumed run goes on as it would have. Layers of which not all
learns are in evaluation mode: their batch norms keep the statistics they came with, and their dropout is
off.
"""

import itertools
import logging
import os
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import nn

from imgcls.augment.batch import changes_images
from imgcls.backbones.layers import head_names, layers
from imgcls.backbones.lora import MARK, within
from imgcls.callbacks.features import Features, features, learning_part, scale_of_features, step_in_units
from imgcls.data.batch import ImageDataset
from imgcls.errors import UserError
from imgcls.optim import give_momentum
from imgcls.spec import Part
from imgcls.tasks.network import data_of
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Finetune(Callback):
    """Trains the head alone first, then more of the network.

    Args:
        head_epochs: epochs in which only the head learns; null: all of them (a linear probe).
        layer_epochs: epochs after which one more layer learns, from the head down (Howard and Ruder 2018);
            0: after `head_epochs` all layers learn.
        body_lr: learning rate of the body, as a share of the head's.
        layer_decay: learning rate of each layer, as a share of that of the layer above (Bao et al. 2021).
        only: of the layers below the head, what learns: the biases (BitFit, Ben Zaken et al. 2022), also
            those of norms; or the adapters that `backbone.lora` adds; null: all.
        keep_statistics: batch norms below the head keep the statistics that they came with, also where they
            learn: a few hundred steps are too few to get the network used to those of small batches.
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
        only: Literal["biases", "adapters"] | None = None,
        keep_statistics: bool = False,
        reuse_features: bool = True,
    ) -> None:
        self.head_epochs, self.layer_epochs = head_epochs, layer_epochs
        self.body_lr, self.layer_decay, self.reuse_features = body_lr, layer_decay, reuse_features
        self.only, self.keep_statistics = only, keep_statistics
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
            parameter.requires_grad_(self.learns(name, self.lowest_layer(0)))
        if self.only == "adapters" and not any(MARK in name for name in self.layers):
            raise UserError("callbacks.finetune.only=adapters: the network has none; write finetune=lora")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if trainer.is_global_zero and (self.body_lr, self.layer_decay) != (1, 1):
            log.info("rates: %s", rates(self.layers, pl_module))
        if self.head_epochs is not None:
            self.name_never_thawed(trainer, pl_module)
            return
        self.reuse(trainer, pl_module)
        if self.scale is None:
            self.scale = scale_of_features(pl_module, data_of(trainer).sets["train"])
        heads = [pl_module.network.get_submodule(name) for name in head_names(pl_module.network)]
        weights = [p for head in heads for p in head.parameters() if p.ndim > 1]
        for optimizer in trainer.optimizers:
            step_in_units(optimizer, weights, self.scale)

    def name_never_thawed(self, trainer: Trainer, task: Task) -> None:
        """Warns of a training that ends before anything but the head learns."""
        steps = task.steps(trainer, data_of(trainer))
        if steps.total is None or steps.total > (self.head_epochs or 0) * steps.per_epoch:
            return
        if trainer.is_global_zero:
            given = f"callbacks.finetune.head_epochs={self.head_epochs}"
            log.warning("finetune: %s: the training is over by then, so that the head alone learns", given)

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

    def learns(self, name: str, lowest: int) -> bool:
        """Says whether a parameter learns while layers from `lowest` on do."""
        if self.only is None or self.layers[name] == max(self.layers.values()):
            return self.layers[name] >= lowest
        return self.layers[name] >= lowest and (MARK in name if self.only == "adapters" else is_bias(name))

    def freeze(self, network: nn.Module, epoch: int) -> bool:
        """Freezes all but the layers of an epoch; returns whether that is a change."""
        before, self.lowest = self.lowest, self.lowest_layer(epoch)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(self.learns(name, self.lowest))
        network.eval()
        for name, module in network.named_modules():
            own = list(module.parameters())
            if MARK in name or (own and all(parameter.requires_grad for parameter in own)):
                module.train()  # with the adapters' own dropout
        if self.keep_statistics:
            for name, module in network.named_modules():
                if isinstance(module, NORMS) and not within(name, head_names(network)):
                    module.eval()
        return before != self.lowest

    def reuse(self, trainer: Trainer, task: Task) -> None:
        """Puts features in the place of images where that changes nothing but the time."""
        data = data_of(trainer)
        alone = trainer.world_size == 1 and data.on_error == "raise"
        alike = not task.loss_terms and task.input_size is None and not changes_images(task.augment)
        if not (self.reuse_features and alone and alike):
            return
        task.features_into = learning_part(task.network)
        splits = [split for split in ("train", "val") if len(data.sets[split])]
        found = {split: features(task, data, split) for split in splits}
        values = {split: one for split, one in found.items() if one is not None}
        if len(values) < len(splits):
            log.info("the features of this network can't be reused: there is more after its head")
            return
        self.images = {split: data.sets[split] for split in splits}
        data.sets |= {split: Features(data.sets[split], one) for split, one in values.items()}
        log.info("features computed once: %d numbers an image", values["train"].shape[1])


def is_bias(name: str) -> bool:
    return name.endswith("bias")  # torch's attention has in_proj_bias, timm's q_bias


def rates(layer_of: dict[str, int], task: Task) -> str:
    """Returns in words the learning rates that the layers begin with, from the head down."""
    lr, scale_of = task.hparams["optimizer"]["lr"], task.rate_scales or {}
    found = []
    for number in sorted(set(layer_of.values()), reverse=True):
        names = [name for name, layer in layer_of.items() if layer == number]
        shared = os.path.commonpath([name.rpartition(".")[0].replace(".", "/") for name in names])
        found.append((shared.replace("/", ".") or names[0].partition(".")[0], lr * scale_of[names[0]]))
    words = []
    for rate, group in itertools.groupby(found, lambda pair: pair[1]):
        ends = [name for name, _ in group]
        words.append(f"{ends[0]} {rate:.3g}" if len(ends) == 1 else f"{ends[0]} to {ends[-1]} {rate:.3g}")
    return ", ".join(words)
