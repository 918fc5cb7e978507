"""ImageClassifier: the task of naming the class of an image."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from imgcls.data.batch import Batch, ImageDataset
from imgcls.errors import UserError
from imgcls.report.calibration import calibration_error, fit_temperature
from imgcls.report.label_errors import reason_against
from imgcls.spec import DataSpec
from imgcls.tasks.losses import build_loss
from imgcls.tasks.measures import Evaluation
from imgcls.tasks.metrics import Answers, Measures
from imgcls.tasks.network import data_of
from imgcls.tasks.scoring import Scoring
from imgcls.tasks.task import Outputs, Stage, Task

if TYPE_CHECKING:
    from imgcls.report.classification import ClassificationReport

Weights = Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None


class ImageClassifier(Task):
    """Trains a network to name the one class of an image; targets are classes `(N,) int64`.

    Args:
        class_weights: of each class in the training loss; "balanced": classes count alike, and the mean
            weight of a sample is 1, as scikit-learn's. Evaluation measures the plain negative
            log-likelihood, the mean over samples, whatever the training loss is.
        temperature: fit one on the validation split after training (Guo et al. 2017, arXiv:1706.04599):
            confidences become as high as accuracy. It is kept in the checkpoint.
        Other arguments: those of `Task`.
    """

    takes_views = False
    keep_probabilities = False  # whether a test keeps all probabilities, to find label errors with
    scored = Scoring()  # outputs of evaluation, as the test set's publication has them

    def __init__(
        self, *args: Any, class_weights: Weights = None, temperature: bool = False, **common: Any
    ) -> None:
        super().__init__(*args, **common)
        self.fits_on_validation = temperature

    def compute(self, batch: Batch, stage: Stage) -> Outputs:
        """Returns cross-entropy and logits; in training the loss of the config, on augmented images."""
        if stage != "train":
            return self.scored(self(batch.images), batch.targets)
        images, targets = self.augmented(batch.images, batch.targets)
        outputs = self.run(images)
        loss = self.training_loss(outputs, targets)
        classes = targets.argmax(1) if targets.ndim == 2 else targets  # of a mixed image the larger part
        return Outputs(loss, outputs[0], classes, images)

    def check_targets(self, targets: Tensor) -> None:
        if (targets.ndim != 1 and not self.scored.any_label) or targets.is_floating_point():
            given = "measures" if targets.is_floating_point() else "several labels for an image"
            raise UserError(
                f"the data has {given}; expected one class, or task=multilabel for several labels"
            )

    def build_loss(self, loss: dict[str, Any]) -> nn.Module:
        weights = self.hparams["class_weights"]
        return build_loss(loss, weights, self.spec.num_classes, self.hparams["class_counts"])

    # What is measured

    @classmethod
    def measures(cls, spec: DataSpec) -> Measures:
        classes, targets = spec.num_classes, torch.arange(min(spec.num_classes, 10))
        return Measures(
            evaluation={"evaluation": Evaluation(classes)},
            training={"top1": MulticlassAccuracy(classes, average="micro", validate_args=False)},
            arguments={"num_classes": classes, "task": "multiclass"},
            example=(F.one_hot(targets, classes).float().softmax(1), targets),
        )

    def measured(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        return outputs.logits.softmax(1), outputs.targets

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """Returns targets, classes and confidences; with a temperature also what was without it."""
        confidences, classes = outputs.logits.softmax(1).max(1)
        kept = {"targets": outputs.targets, "predictions": classes, "confidences": confidences}
        raw = outputs.logits * self.temperature
        if self.temperature != 1 and self.tta is None:  # of one view: a mean can't be scaled back
            kept["unscaled"] = raw.softmax(1).amax(1)
            kept["unscaled_loss"] = F.cross_entropy(raw, outputs.targets, reduction="none")
        if self.keep_probabilities:
            kept["probabilities"] = outputs.logits.softmax(1)
        return kept | ({"logits": raw} if self.keep_logits else {})

    def on_test_start(self) -> None:
        images = len(data_of(self.trainer).sets["test"])
        against = reason_against(images, self.spec.num_classes)
        self.keep_probabilities = not (against or self.scored.any_label or self.keep_logits)

    def summary(self, tested: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.temperature == 1 or self.tta is not None:
            return {}
        right = tested["predictions"] == tested["targets"]
        return {
            "loss_unscaled": tested["unscaled_loss"].double().mean(),
            "calibration_error_unscaled": calibration_error(tested["unscaled"], right),
            "temperature": torch.tensor(self.temperature),
        }

    def report(self, metrics: dict[str, float], images: ImageDataset) -> "ClassificationReport":
        from imgcls.report.classification import ClassificationReport

        if "test/temperature" in metrics:
            metrics["test/temperature"] = self.temperature  # logged, it was rounded
        return ClassificationReport.of(metrics, self.tested, images, self.spec, self.evidence)

    def evidence(self, images: Tensor, classes: Tensor) -> Tensor:
        """Returns heat maps `(N, h, w)` of where `images (N, C, H, W) uint8` look like `classes (N,)`."""
        from imgcls.report.heatmaps import grad_cam

        batch = self.normalise(images.to(self.device))
        return grad_cam(self.network, batch, classes.to(self.device)).cpu()

    def averaged(self, views: Sequence[Outputs], targets: Tensor) -> Outputs:
        """Returns the logs of the mean probabilities as logits."""
        logs = torch.stack([outputs.logits.log_softmax(1) for outputs in views])
        return self.scored(logs.logsumexp(0) - math.log(len(views)), targets)

    def answers(self, images: Tensor, top_k: int | None = None) -> Answers:
        probabilities = torch.stack([self(view).softmax(1) for view in self.views_of(images)]).mean(0)
        best = probabilities.topk(min(top_k or 5, self.spec.num_classes))
        labels = [[self.spec.class_names[i] for i in row] for row in best.indices.tolist()]
        return Answers(labels, list(best.values.cpu()))

    def export_facts(self) -> dict[str, Any]:
        return {"activation": "softmax"}

    # The temperature

    def fitted(self, tested: dict[str, Tensor]) -> dict[str, Any]:
        self.temperature = fit_temperature(tested["logits"], tested["targets"])
        return {"temperature": self.temperature}

    def on_fit_start(self) -> None:
        self.temperature = 1.0  # that of a checkpoint was of other weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.set_temperature(checkpoint.get("temperature", 1.0), "the checkpoint")

    def set_temperature(self, value: object, origin: str) -> None:
        """Sets the temperature that a file says. Raises UserError: it is no number above 0."""
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{origin}'s temperature is {value}; expected a number above 0")
        self.temperature = float(value)
