"""Distillation callback: a student learns from a teacher's logits beside the targets (Hinton et al. 2015)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from imgcls.errors import UserError
from imgcls.spec import Share
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.task import Outputs, Task


class Distillation(Callback):
    """Adds the teacher's part: (1 - weight) · loss + weight · T² · KL(teacher ‖ student).

    The teacher sees what the student sees, augmented and mixed alike; it is not in the student's checkpoint.

    Args:
        teacher: a checkpoint or run directory of imgcls, with the same classes.
        temperature: T, which softens both distributions.
        weight: share of the teacher's part.
        trust: packages that a teacher's network may come from, beside ours.
    """

    def __init__(
        self, teacher: str, temperature: PositiveFloat = 4.0, weight: Share = 0.9, trust: Sequence[str] = ()
    ) -> None:
        self.teacher = ImageClassifier.load_from_checkpoint(teacher, trust=trust).requires_grad_(False)
        self.temperature, self.weight, self.name = temperature, weight, Path(teacher)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ImageClassifier):
            given = f"callbacks.distillation: the task is {type(pl_module).__name__}"
            raise UserError(f"{given}; expected task=classification")
        theirs, own = self.teacher.spec, pl_module.spec
        if theirs.class_names != own.class_names or theirs.channels != own.channels:
            known = f"{theirs.num_classes} classes ({theirs.class_names[0]}, …) in {theirs.channels} channels"
            there = f"{own.num_classes} ({own.class_names[0]}, …) in {own.channels}"
            raise UserError(f"teacher={self.name} knows {known}, the data has {there}; expected the same")
        self.teacher.to(pl_module.device)
        pl_module.loss_terms.append(self.loss)

    def loss(self, student: Task, outputs: Outputs) -> Tensor:
        """Returns the loss with the teacher's part, who sees the images as the student gets them."""
        assert outputs.images is not None
        pixels = (outputs.images - student.shift) / student.scale
        size = self.teacher.spec.size
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        with torch.no_grad():
            target = self.teacher.network(pixels * self.teacher.scale + self.teacher.shift).float()
        soft = (
            F.log_softmax(outputs.logits / self.temperature, 1),
            F.log_softmax(target / self.temperature, 1),
        )
        divergence = F.kl_div(*soft, reduction="batchmean", log_target=True)
        return (1 - self.weight) * outputs.loss + self.weight * self.temperature**2 * divergence
