"""Distillation callback: a student learns from a teacher's logits beside the targets (Hinton et al. 2015)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from imgcls.backbones.hub import resolved
from imgcls.backbones.preprocessing import of_weights
from imgcls.backbones.weights import described
from imgcls.config.training import Node
from imgcls.errors import UserError
from imgcls.processes import rank
from imgcls.spec import DataSpec, Share
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.published import learnt, published
from imgcls.tasks.task import Outputs, Task

log = logging.getLogger(__name__)


class Distillation(Callback):
    """Adds the teacher's part: (1 - weight) · loss + weight · T² · KL(teacher ‖ student).

    The teacher sees what the student sees, augmented and mixed alike, but at its own size and with its own
    mean and deviation; it is not in the student's checkpoint.

    Args:
        teacher: a checkpoint or run directory of imgcls, with the same classes; or
        backbone: a network with its weights, as conf/backbone says one, for the same classes.
        temperature: T, which softens both distributions.
        weight: share of the teacher's part.
        trust: packages that a teacher's network may come from, beside ours.
    """

    teacher: ImageClassifier

    def __init__(
        self,
        teacher: str | None = None,
        temperature: PositiveFloat = 4.0,
        weight: Share = 0.9,
        trust: Sequence[str] = (),
        backbone: Node | None = None,
    ) -> None:
        self.temperature, self.weight = temperature, weight
        self.backbone = resolved(backbone) if backbone and "_target_" in backbone else None
        if (teacher is None) == (self.backbone is None):
            advice = "callbacks.distillation.teacher=RUN, or backbone@callbacks.distillation.backbone=NAME"
            raise UserError(f"callbacks.distillation: expected one teacher; write {advice}")
        if teacher is not None:
            self.teacher = ImageClassifier.load_from_checkpoint(teacher, trust=trust)
        elif self.backbone is not None:
            learnt(self.backbone)
        self.name = teacher or str((self.backbone or {}).get("name"))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the loss before any callback asks whether it is the plain one."""
        if stage == "fit" and isinstance(pl_module, Task):
            pl_module.loss_terms.append(self.loss)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ImageClassifier):
            given = f"callbacks.distillation: the task is {type(pl_module).__name__}"
            raise UserError(f"{given}; expected task=classification")
        own = pl_module.spec
        if self.backbone:
            self.teacher = published_teacher(self.backbone, own)
        theirs = self.teacher.spec
        if theirs.class_names != own.class_names or theirs.channels != own.channels:
            known = f"{theirs.num_classes} classes ({theirs.class_names[0]}, …) in {theirs.channels} channels"
            there = f"{own.num_classes} ({own.class_names[0]}, …) in {own.channels}"
            raise UserError(f"teacher={self.name} knows {known}, the data has {there}; expected the same")
        self.teacher.requires_grad_(False).to(pl_module.device)

    def loss(self, student: Task, outputs: Outputs) -> Tensor:
        """Returns the loss with the teacher's part, who sees the images as the student gets them."""
        assert outputs.images is not None
        pixels = (outputs.images - student.shift) / student.scale
        size = self.teacher.spec.size
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        with torch.no_grad():
            images = pixels * self.teacher.scale + self.teacher.shift
            target = self.teacher.network(images.to(self.teacher.scale.dtype)).float()
        soft = (
            F.log_softmax(outputs.logits / self.temperature, 1),
            F.log_softmax(target / self.temperature, 1),
        )
        divergence = F.kl_div(*soft, reduction="batchmean", log_target=True)
        return (1 - self.weight) * outputs.loss + self.weight * self.temperature**2 * divergence


def published_teacher(backbone: Node, own: DataSpec) -> ImageClassifier:
    """Returns the teacher of a backbone's config, for images as its weights expect them. Raises UserError: it
    has learnt another number of classes, or its weights do not all fit."""
    first, expected = learnt(backbone), of_weights(backbone, testing=True)
    named = described(Path(first.weights)).get("class_names") if first.weights else None
    name = first.weights or str(backbone.get("name"))
    if named is None and rank() == 0:
        order = f"{own.class_names[0]}, {own.class_names[1]}, …"
        log.info("teacher: %s does not name its classes; they are taken to be the data's: %s", name, order)
    fields: dict[str, Any] = {}
    if expected is not None and first.preprocessing == "weights":
        fields = {
            key: expected.fields[key] for key in ("mean", "std", "image_size") if key in expected.fields
        }
    return published(backbone, replace(own, class_names=named or own.class_names, **fields))
