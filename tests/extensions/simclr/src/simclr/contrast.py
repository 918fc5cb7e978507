"""SimCLR: pretraining without labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

import imgcls


class SimCLR(imgcls.Task):
    """Brings two views of an image together, and views of different images apart (Chen et al. 2020,
    arXiv:2002.05709). In place of the backbone's head is the projection; a probe has a new head there.

    Args:
        dimensions: of the projection.
        sharpness: what similarities are multiplied by, 1 divided by the paper's temperature.
        Other arguments: those of `imgcls.Task`.
    """

    def __init__(self, *args: Any, dimensions: int = 32, sharpness: float = 5.0, **common: Any) -> None:
        super().__init__(*args, **common)
        self.sharpness = sharpness
        head = self.network.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        hidden = nn.Linear(head.in_features, head.in_features)
        self.network.set_submodule(self.head_name, nn.Sequential(hidden, nn.ReLU(), head))

    def outputs(self) -> int:
        return int(self.hparams["dimensions"])

    def compute(self, batch: imgcls.Batch, stage: imgcls.Stage) -> imgcls.Outputs:
        """Returns loss and projections `(N, D)`. Evaluation draws nothing: the mirrored image is the second
        view."""
        if stage != "train":
            views = self.normalise(torch.stack([batch.images, batch.images.flip(-1)], 1))
        elif batch.images.ndim == 5:
            views, _ = self.augmented(batch.images, batch.targets)
        else:
            raise imgcls.UserError("SimCLR needs two views of each image, as augment=two_views makes them")
        found = F.normalize(self.run(views.flatten(0, 1))[0])  # (2N, D), the views of an image in a row
        return imgcls.Outputs(nt_xent(self.sharpness * found @ found.T), found[::2], batch.targets)

    @classmethod
    def measures(cls, spec: imgcls.DataSpec) -> imgcls.Measures:
        return imgcls.Measures(example=(torch.rand(4, 32), torch.tensor([0, 0, 1, 1])))


def nt_xent(similarities: Tensor) -> Tensor:
    """Returns the loss of similarities `(2N, 2N)`: each view has to find the other one of its image."""
    places = torch.arange(len(similarities), device=similarities.device)
    itself = places[:, None] == places
    return F.cross_entropy(similarities.masked_fill(itself, -torch.inf), places ^ 1)


class Neighbours(Metric):
    """The share of images whose nearest neighbour in the split is of the same class."""

    higher_is_better = True
    full_state_update = False
    vectors: list[Tensor]
    classes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("vectors", [], dist_reduce_fx="cat")
        self.add_state("classes", [], dist_reduce_fx="cat")

    def update(self, vectors: Tensor, classes: Tensor) -> None:
        self.vectors.append(vectors)
        self.classes.append(classes)

    def compute(self) -> Tensor:
        vectors, classes = dim_zero_cat(self.vectors), dim_zero_cat(self.classes)
        nearest = (vectors @ vectors.T).fill_diagonal_(-torch.inf).argmax(1)
        return (classes[nearest] == classes).float().mean()
