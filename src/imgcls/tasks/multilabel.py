"""MultiLabelClassifier: the task of saying which of several labels an image has."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.data.batch import Batch, ImageDataset
from imgcls.errors import UserError
from imgcls.report.calibration import best_thresholds
from imgcls.spec import DataSpec
from imgcls.tasks.losses import FocalLoss, build_loss, label_rows
from imgcls.tasks.measures import LabelEvaluation, LabelScores
from imgcls.tasks.metrics import Answers, Measures
from imgcls.tasks.task import Outputs, Stage, Task

if TYPE_CHECKING:
    from imgcls.report.multilabel import MultiLabelReport

log = logging.getLogger(__name__)


class MultiLabelClassifier(Task):
    """Trains a network to give an image all of its labels; targets are `(N, K)` of 0 and 1. Classes `(N,)`
    are taken as one label for each image.

    Args:
        thresholds: fit one for each label on the validation split after training, that with the best F1. They
            are kept in the checkpoint; a label whose probability is above its own is given. Otherwise, and in
            the validation of each epoch, all are 0.5.
        Other arguments: those of `Task`.
    """

    takes_views = False

    def __init__(self, *args: Any, thresholds: bool = True, **common: Any) -> None:
        super().__init__(*args, **common)
        self.fits_on_validation = thresholds

    def compute(self, batch: Batch, stage: Stage) -> Outputs:
        """Returns binary cross-entropy and logits; in training conf/loss, on augmented images."""
        targets = label_rows(batch.targets, self.spec.num_classes)
        if stage != "train":
            logits = self(batch.images)
            return Outputs(F.binary_cross_entropy_with_logits(logits, targets), logits, targets.long())
        images, targets = self.augmented(batch.images, targets)
        outputs = self.run(images)
        loss = self.training_loss(outputs, targets)
        return Outputs(loss, outputs[0], (targets > 0.5).long(), images)  # of a mixed image the larger part

    def check_targets(self, targets: Tensor) -> None:
        if targets.is_floating_point():
            raise UserError("the data has measures; expected labels (N, K) of 0 and 1, or classes (N,)")

    def build_loss(self, loss: dict[str, Any]) -> nn.Module:
        counts, labels, weight = self.hparams["class_counts"], self.spec.num_classes, loss.get("pos_weight")
        if weight == "balanced":  # a label that all images have weighs as if one had it not
            images = self.hparams["train_images"]
            loss = {**loss, "pos_weight": [max(images - count, 1) / count for count in counts]}
        elif isinstance(weight, list) and len(weight) != labels:
            raise UserError(f"loss.pos_weight={weight}: expected {labels} numbers, one for each label")
        built = build_loss(loss, None, labels, counts)
        if isinstance(built, nn.CrossEntropyLoss | FocalLoss):
            kind = type(built).__name__
            raise UserError(f"loss: {kind} is for one class an image; expected loss=multilabel or asymmetric")
        return built

    # What is measured

    @classmethod
    def measures(cls, spec: DataSpec) -> Measures:
        labels = spec.num_classes
        targets = F.one_hot(torch.arange(min(labels, 10)), labels)
        return Measures(
            evaluation={"evaluation": LabelEvaluation(labels)},
            training={"scores": LabelScores(labels)},
            arguments={"num_labels": labels, "task": "multilabel"},
            example=(targets.float().sigmoid(), targets),
        )

    def measured(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        return outputs.logits.sigmoid(), outputs.targets

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """Returns targets and probabilities of all labels, and the loss of each sample."""
        targets, logits = outputs.targets, outputs.logits
        losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)
        return {"targets": targets.byte(), "probabilities": logits.sigmoid(), "losses": losses}

    def report(self, metrics: dict[str, float], images: ImageDataset) -> "MultiLabelReport":
        from imgcls.report.multilabel import MultiLabelReport

        return MultiLabelReport.of(metrics, self.tested, images, self.spec, self.thresholds.tolist())

    def averaged(self, views: Sequence[Outputs], targets: Tensor) -> Outputs:
        """Returns the logits of the mean probabilities."""
        logits = torch.stack([outputs.logits for outputs in views])
        logits = F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
        return Outputs(F.binary_cross_entropy_with_logits(logits, targets.float()), logits, targets)

    def answers(self, images: Tensor, top_k: int | None = None) -> Answers:
        probabilities = torch.stack([self(view).sigmoid() for view in self.views_of(images)]).mean(0)
        given = probabilities.where(probabilities > self.thresholds, -1.0)
        best = given.topk(min(top_k or self.spec.num_classes, self.spec.num_classes))
        numbers = [row[row >= 0] for row in best.values.cpu()]
        rows = zip(best.indices.tolist(), numbers, strict=True)
        labels = [[self.spec.class_names[i] for i in row[: len(kept)]] for row, kept in rows]
        return Answers(labels, numbers, several=True)

    def export_facts(self) -> dict[str, Any]:
        return {"activation": "sigmoid", "thresholds": self.thresholds.tolist()}

    # The thresholds

    @property
    def thresholds(self) -> Tensor:
        """The thresholds `(K,) float32` of a test and of predictions, which the test's metric holds."""
        return self.test_metrics.own["evaluation"].get_buffer("thresholds")

    def set_thresholds(self, values: Sequence[float]) -> None:
        self.thresholds.copy_(torch.tensor(values))

    def fitted(self, tested: dict[str, Tensor]) -> dict[str, Any]:
        found = best_thresholds(tested["probabilities"], tested["targets"])
        self.set_thresholds(found)
        if self.trainer.is_global_zero:
            images = len(tested["targets"])
            log.info("thresholds: %.3g to %.3g, fitted on %d images", min(found), max(found), images)
        return {"thresholds": found}

    def on_fit_start(self) -> None:
        self.thresholds.fill_(0.5)  # those of a checkpoint were of other weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        labels = self.spec.num_classes
        values = checkpoint.get("thresholds", [0.5] * labels)
        numbers = isinstance(values, list) and all(isinstance(v, float) and 0 < v < 1 for v in values)
        if not numbers or len(values) != labels:
            expected = f"expected {labels} numbers between 0 and 1"
            raise UserError(f"the checkpoint's thresholds are {values}; {expected}")
        self.set_thresholds(values)
