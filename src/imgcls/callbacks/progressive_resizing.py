"""ProgressiveResizing callback: trains on smaller images first."""

from lightning.pytorch import Callback, LightningModule, Trainer

from imgcls.backbones.build import try_shapes
from imgcls.errors import UserError
from imgcls.spec import ImageSize, checked_size, sides
from imgcls.tasks.task import Task


class ProgressiveResizing(Callback):
    """Trains on smaller images first: faster, and often generalises better (Tan and Le 2021, EfficientNetV2).

    Args:
        start: share of the training images' size in the first epoch.
        until: share of the epochs after which images have their whole size.
        multiple: sizes are multiples of this number of pixels.
    """

    def __init__(self, start: float = 0.5, until: float = 0.75, multiple: int = 16) -> None:
        if not 0 < start <= 1 or not 0 < until <= 1 or multiple < 1:
            given = f"start={start}, until={until}, multiple={multiple}"
            expected = "expected shares above 0 and at most 1, and a number of pixels"
            raise UserError(f"ProgressiveResizing: {given}: {expected}")
        self.start, self.until, self.multiple = start, until, multiple

    def size(self, epoch: int, epochs: int, whole: ImageSize) -> ImageSize:
        """Returns the size of the images of an epoch, in pixels."""
        share = self.start + (1 - self.start) * min(epoch / max(round(self.until * epochs), 1), 1.0)
        if share == 1:
            return whole
        step = self.multiple
        return checked_size([min(max(round(share * side / step), 1) * step, side) for side in sides(whole)])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the smallest size, and sets it before any callback asks which images the task sees."""
        assert isinstance(pl_module, Task)
        if stage != "fit":
            return
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise UserError("ProgressiveResizing needs an end: set trainer.max_epochs")
        spec = pl_module.spec
        smallest = self.size(0, trainer.max_epochs, spec.for_training.image_size)
        try_shapes(pl_module.network, pl_module.outputs(), spec.channels, smallest)
        pl_module.input_size = smallest

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        epochs, whole = trainer.max_epochs or 1, pl_module.spec.for_training.image_size
        pl_module.input_size = self.size(trainer.current_epoch, epochs, whole)
