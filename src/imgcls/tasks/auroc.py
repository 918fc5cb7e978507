"""Area under the ROC curve as torchmetrics has it, but the mean is over the classes, or labels, that some
images have and some have not: there is no curve of others, which torchmetrics counts as 0."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MultilabelAUROC
from torchmetrics.utilities import dim_zero_cat


def auroc(
    task: Literal["multiclass", "multilabel"],
    num_classes: int = 0,
    num_labels: int = 0,
    validate_args: bool = True,
) -> Metric:
    """Returns the metric of a task with so many classes or labels."""
    if task == "multilabel":
        return LabelAUROC(num_labels, average=None, validate_args=validate_args)
    return ClassAUROC(num_classes, average=None, validate_args=validate_args)


class ClassAUROC(MulticlassAUROC):
    """The mean over classes, each against all others."""

    def compute(self) -> Any:
        targets = dim_zero_cat(self.target)  # type: ignore[arg-type]
        counts = torch.bincount(targets, minlength=self.num_classes)
        return mean_where_known(super().compute, counts, len(targets))


class LabelAUROC(MultilabelAUROC):
    """The mean over labels."""

    def compute(self) -> Any:
        targets = dim_zero_cat(self.target)  # type: ignore[arg-type]
        return mean_where_known(super().compute, targets.sum(0), len(targets))


def mean_where_known(compute: Callable[[], Any], counts: Tensor, images: int) -> Tensor:
    """Returns the mean of the values `(K,)` of the classes that more than none and less than all have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (positive|negative) samples")
        values: Tensor = compute()
    known = (counts > 0) & (counts < images)
    return values[known].sum() / known.sum().clamp_min(1)
