"""Fine-tuning: which layers learn in which epoch, and how fast each learns.

What learns is a function of the epoch, so a resumed run goes on as it would have. Frozen layers are in evaluation
mode: their batch norms keep the statistics they came with, and their dropout is off.
"""

import logging
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from pydantic import Field
from torch import nn
from torchvision.models.vision_transformer import Encoder

from imgcls.callbacks.linear_probe import (
    Features,
    changes_images,
    features,
    learning_part,
    scale_of_features,
    step_in_units,
)
from imgcls.data.batch import ImageDataset
from imgcls.data.module import ImageDataModule
from imgcls.tasks.classification import ImageClassifier

log = logging.getLogger(__name__)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Encoder)
Share = Annotated[float, Field(gt=0, le=1)]


class Finetune(Callback):
    """Trains the head alone first, then more of the network.

    Args:
        head_epochs: epochs in which only the head learns; null: all of them (a linear probe).
        layer_epochs: epochs after which one more layer learns, from the head down (Howard and Ruder 2018); 0: after
            `head_epochs` all layers learn.
        body_lr: learning rate of the body, as a share of the head's.
        layer_decay: share of the learning rate that each layer has of that of the layer above (Bao et al. 2021).
        reuse_features: in a linear probe without augmentation, compute what goes into the head once, before any dropout
            of the head's; this changes the time that training takes and nothing else.

    In a linear probe the optimizer sees the head's weights in units of their inputs, so that one learning rate fits
    features of any scale.
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
        self.lowest: int | None = None  # the lowest layer that learns now
        self.images: dict[str, ImageDataset] = {}  # the sets in place of which features are read
        self.scale: float | None = None  # of the features, in a linear probe

    def setup(self, trainer: Trainer, pl_module: ImageClassifier, stage: str) -> None:  # type: ignore[override]
        if stage != "fit":
            return
        self.layers = layers(pl_module.network)
        top = max(self.layers.values())
        pl_module.rate_scales = {
            name: 1.0 if layer == top else self.body_lr * self.layer_decay ** (top - layer)
            for name, layer in self.layers.items()
        }
        for name, parameter in pl_module.network.named_parameters():  # before a strategy looks at what learns
            parameter.requires_grad_(self.layers[name] >= self.learning(0))

    def learning(self, epoch: int) -> int:
        """Returns the number of the lowest layer that learns in an epoch."""
        top = max(self.layers.values())
        if self.head_epochs is None or epoch < self.head_epochs:
            return top
        if not self.layer_epochs:
            return 0
        return max(top - 1 - int((epoch - self.head_epochs) / self.layer_epochs), 0)

    def freeze(self, network: nn.Module, epoch: int) -> bool:
        """Lets the layers of an epoch learn and freezes the others; returns whether that is a change."""
        before, self.lowest = self.lowest, self.learning(epoch)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(self.layers[name] >= self.lowest)
        network.eval()
        for module in network.modules():
            own = list(module.parameters())
            if own and all(parameter.requires_grad for parameter in own):
                module.train()
        return before != self.lowest

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        first = trainer.current_epoch == 0 or self.lowest is None
        changed = self.freeze(pl_module.network, trainer.current_epoch)
        for optimizer in trainer.optimizers:
            give_momentum(optimizer)
        if changed and isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model = (
                trainer.lightning_module
            )  # wrapped anew: DDP waits for what learned when it began
            trainer.strategy.configure_ddp()
            first = True
        if (
            first or self.layer_epochs or trainer.current_epoch == self.head_epochs
        ) and trainer.is_global_zero:
            counts = [p.numel() for p in pl_module.network.parameters() if p.requires_grad]
            total = sum(p.numel() for p in pl_module.network.parameters())
            above = [name for name, layer in self.layers.items() if layer >= (self.lowest or 0)]
            log.info("epoch %d: %s of %s parameters learn, from %s on", trainer.current_epoch + 1,
                     f"{sum(counts):,}", f"{total:,}", above[0].rpartition(".")[0] or above[0])  # fmt: skip

    def on_fit_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        if self.head_epochs is not None:
            return
        self.reuse(trainer, pl_module)
        if self.scale is None:
            self.scale = scale_of_features(pl_module, trainer.datamodule.sets["train"])  # type: ignore[attr-defined]
        heads = [pl_module.network.get_submodule(name) for name in pl_module.network.head_names]  # type: ignore[union-attr]
        for optimizer in trainer.optimizers:
            step_in_units(
                optimizer, [p for head in heads for p in head.parameters() if p.ndim > 1], self.scale
            )

    def reuse(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Puts features in the place of images where that changes nothing but the time."""
        same = pl_module.distil is None and trainer.world_size == 1 and not changes_images(pl_module.augment)
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if self.reuse_features and same and data.on_error == "raise":
            pl_module.features_into = learning_part(pl_module.network)
            found = {split: features(pl_module, data, split) for split in ("train", "val")}
            if any(values is None for values in found.values()):
                return log.info("the features of this network can't be reused: there is more after its head")
            self.images = {split: data.sets[split] for split in found}
            data.sets |= {split: Features(data.sets[split], values) for split, values in found.items()}  # type: ignore[arg-type]
            log.info("features computed once: %d numbers an image", next(iter(found.values())).shape[1])  # type: ignore[union-attr]

    def on_fit_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
        if self.images:
            trainer.datamodule.sets |= self.images  # type: ignore[attr-defined]
            self.images = {}

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]


def give_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that begin to learn a momentum of zero, beside others of their group that have one: torch's
    fused SGD takes all or none. Their first step is the same with it, as long as there is no dampening."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        if group["fused"] and any(
            optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in group["params"]
        ):
            for parameter in (p for p in group["params"] if p.requires_grad):
                if optimizer.state.get(parameter, {}).get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def layers(network: nn.Module) -> dict[str, int]:
    """Returns the number of the layer of each parameter, from the input (0) to the head, which has the highest.

    timm's networks say their layers; of others, the children are the layers, and those of containers in their place.
    """
    heads: tuple[str, ...] = network.head_names  # type: ignore[assignment]
    names = [name for name, _ in network.named_parameters()]
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters

        matcher = network.group_matcher(coarse=False)  # type: ignore[operator]
        found: Mapping[Any, int] = group_parameters(network, matcher, reverse=True)
        number = {name: found[name] for name in names}
    else:
        blocks = [
            name for name in _blocks(network, "") if not name.startswith(tuple(f"{head}." for head in heads))
        ]
        place = {name: i for i, name in enumerate(blocks)}
        number = {name: max((i for b, i in place.items() if name.startswith(b)), default=0) for name in names}
    order = {
        old: new for new, old in enumerate(sorted({n for name, n in number.items() if not _in(name, heads)}))
    }
    return {name: len(order) if _in(name, heads) else order[number[name]] for name in names}


def _in(name: str, modules: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def _blocks(module: nn.Module, prefix: str) -> list[str]:
    out = []
    for name, child in module.named_children():
        if isinstance(child, CONTAINERS):
            out += _blocks(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            out.append(f"{prefix}{name}.")
    return out
