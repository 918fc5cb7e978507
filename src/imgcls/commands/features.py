"""Features: what goes into a network's head, for nearest neighbours and for probes."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.commands.outputs import appearing
from imgcls.config.paths import shown
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.network import Features
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
Found = tuple[Tensor, Tensor, list[str]]  # features (N, D) float32, targets, names of the images
TEMPERATURE = 0.07  # of the votes, as Caron et al. have it
CHUNK = 65536  # images of the memory that a batch is compared with at a time
LEAST = 1e-6  # share of the votes of a class that has none, so that logits are finite


@torch.no_grad()
def features_of(task: Task, data: ImageDataModule, trainer: Trainer) -> Found:
    """Returns what goes into the head for the images of a test split that can be read, computed on the
    trainer's device and in its precision."""
    device, found, targets, names = trainer.strategy.root_device, list[Tensor](), list[Tensor](), list[str]()
    data.trainer = trainer  # whose folder has the list of unreadable images
    trainer.precision_plugin.convert_module(task).to(device)
    for images, labels, indices, valid in data.test_dataloader():
        with task.features_kept() as kept, trainer.precision_plugin.forward_context():
            task.raw_logits(images.to(device))
        found.append(kept.pooled()[valid.to(device)])
        targets.append(labels[valid].to(device))
        names += [data.sets["test"].name(index) for index in indices[valid].tolist()]
    return torch.cat(found), torch.cat(targets), names


class NearestNeighbours(nn.Module):
    """Names the class of an image by the `k` images of a memory whose features are the most alike: each votes
    with exp(cosine similarity / 0.07) (Wu et al. 2018; Caron et al. 2021, arXiv:2104.14294). The logits are
    the logarithms of the shares of the votes.

    Args:
        network: gives the features, what goes into its module `head`.
        features: of the memory, `(M, D) float32`.
        classes: of the memory, `(M,) int64`, of `num_classes`.
    """

    def __init__(
        self, network: nn.Module, head: str, k: int, features: Tensor, classes: Tensor, num_classes: int
    ) -> None:
        super().__init__()
        self.network, self.head, self.k, self.num_classes = network, head, k, num_classes
        self.features = F.normalize(features)  # no buffers: a trainer in half precision would cast them
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        kept = Features()
        hook = self.network.get_submodule(self.head).register_forward_pre_hook(kept.keep)
        try:
            self.network(images)
        finally:
            hook.remove()
        with torch.autocast(images.device.type, enabled=False):
            return self.logits(F.normalize(kept.pooled()))

    def logits(self, queries: Tensor) -> Tensor:
        """Returns the logits `(N, K)` of normalised features `(N, D)`."""
        alike, classes = queries.new_empty(len(queries), 0), self.classes.new_empty(len(queries), 0)
        for memory, labels in zip(self.features.split(CHUNK), self.classes.split(CHUNK), strict=True):
            near = (queries @ memory.T).topk(min(self.k, len(memory)))
            alike, classes = torch.cat([alike, near.values], 1), torch.cat([classes, labels[near.indices]], 1)
            best = alike.topk(min(self.k, alike.shape[1]))
            alike, classes = best.values, classes.gather(1, best.indices)
        shares = (alike / TEMPERATURE).softmax(1)
        votes = queries.new_zeros(len(queries), self.num_classes).scatter_add(1, classes, shares)
        return votes.clamp_min(LEAST).log()


def neighbours(task: Task, data: ImageDataModule, trainer: Trainer, k: int) -> ImageClassifier:
    """Returns the classifier by nearest neighbours among the images of a test split. Raises UserError: they
    have no classes, or are fewer than `k`."""
    targets = data.sets["test"].targets
    if targets.ndim != 1 or targets.is_floating_point():
        what = "several labels for an image" if targets.ndim == 2 else "measures"
        raise UserError(f"knn={k}: neighbours vote for one class, the data has {what}")
    if k > len(targets):
        raise UserError(f"knn={k}: train has {len(targets):,} images; expected at most so many neighbours")
    features, classes, _ = features_of(task, data, trainer)
    given = (task.network, task.head_name, k, features, classes, task.spec.num_classes)
    facts = {"channels_last": task.hparams["channels_last"]}
    return ImageClassifier(
        asdict(task.spec), {}, network_of=lambda *_: NearestNeighbours(*given), **facts
    ).eval()


def write_features(path: Path, found: dict[str, Found], class_names: Sequence[str]) -> None:
    """Writes a .npz file: of each split `SPLIT_features (N, D) float32`, `SPLIT_targets` and `SPLIT_names`,
    and `class_names`."""
    arrays: dict[str, Any] = {"class_names": np.array(class_names)}
    for split, (features, targets, names) in found.items():
        arrays |= {f"{split}_features": features.cpu().numpy(), f"{split}_targets": targets.cpu().numpy()}
        arrays[f"{split}_names"] = np.array(names)
    with appearing(path, "features") as folder:
        np.savez(folder / path.name, **arrays)
    count = sum(len(targets) for _, targets, _ in found.values())
    log.info("features: %d images, %d numbers each, in %s", count, features.shape[1], shown(path))
