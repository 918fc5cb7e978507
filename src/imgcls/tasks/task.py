"""Task: base class of what a network is trained for. A subclass says what it computes of a batch."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from imgcls.augment.batch import BatchAugment
from imgcls.augment.settings import Augment
from imgcls.backbones.build import build_network
from imgcls.backbones.lora import to_channels_last
from imgcls.config import check as configs
from imgcls.config.build import Find
from imgcls.config.training import FIRST_WEIGHTS
from imgcls.data.batch import Batch, ImageDataset
from imgcls.errors import UserError
from imgcls.runs.checkpoints import find_checkpoint, load_content
from imgcls.spec import DataSpec
from imgcls.tasks.loading import config_of, restore
from imgcls.tasks.losses import build_loss, check_loss
from imgcls.tasks.measures import Gathered
from imgcls.tasks.metrics import Answers, Measures, Metrics, Outputs
from imgcls.tasks.network import NetworkModule, data_of

if TYPE_CHECKING:
    from imgcls.report.report import Report

Stage = Literal["train", "val", "test"]
LossTerm = Callable[["Task", "Outputs"], Tensor]


class Task(NetworkModule):
    """Trains and evaluates a network on batches of uint8 images. All arguments are plain Python, so that a
    checkpoint needs nothing beside itself: `Task.load_from_checkpoint(path)`.

    Args:
        spec: the fields of the data's `DataSpec`.
        backbone: conf/backbone: `_target_` and its arguments.
        loss, optimizer, scheduler: conf/loss, conf/optimizer, conf/scheduler; evaluation needs none of them.
        augment: conf/augment; its part for the batch is applied here.
        metrics: conf/metrics, by name: metrics of torchmetrics for validation and test.
        class_counts: how many training images each class or label has.
        train_images: how many there are.
        seed: of all that is drawn in training.
        channels_last: memory layout of network and images; faster wherever convolutions have kernels for it.
        fused: take fused optimizer steps where there are any.
        compile: compile the network with torch.compile.
        network_of: builds the network, from `backbone` and the shape; it is no part of the settings.

    Callbacks set these attributes when training begins:
        loss_terms: functions of (task, outputs); each returns the loss that takes the place of outputs.loss.
        rate_scales: the share of the learning rate that each parameter has, by name.
        input_size: of training images in pixels, where it is not the data's.
        features_into: the part of the network that takes features in place of images.
    """

    takes_views = True  # whether `compute` takes views `(N, V, C, H, W)`, where augment.image makes them
    fits_on_validation = False  # whether `fitted` has something to fit
    keep_logits = False  # whether a test keeps the network's own logits of each sample

    tested: dict[str, Tensor]  # what the last test kept of each sample
    gathered: Gathered
    train_metrics: Metrics
    val_metrics: Metrics
    test_metrics: Metrics

    def __init__(
        self,
        spec: dict[str, Any],
        backbone: dict[str, Any],
        loss: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        augment: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        class_counts: list[int] | None = None,
        train_images: int = 0,
        seed: int = 0,
        channels_last: bool = True,
        fused: bool = True,
        compile: bool = False,
        network_of: Callable[..., nn.Module] = build_network,
        metric_of: Find = configs.locate,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["network_of", "metric_of"])
        # What a checkpoint is loaded into needs no first weights: neither a download nor the user's file.
        self.hparams["backbone"] = {k: v for k, v in backbone.items() if k not in FIRST_WEIGHTS}
        self.loss_terms: list[LossTerm] = []
        self.spec = DataSpec(**spec)
        shape = (self.spec.channels, self.spec.image_size)
        self.network = network_of(backbone, self.outputs(), *shape, self.spec.class_names)
        if channels_last:
            to_channels_last(self.network)
        if compile:
            self.network.compile()
        if loss is not None:
            self.loss = self.build_loss(loss)
        self.augment = BatchAugment(Augment.read(augment or {}), self.spec)
        std = torch.tensor(self.spec.std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(self.spec.mean).view(-1, 1, 1) / std, persistent=False)
        self.train_metrics = Metrics(self.measures(self.spec).training)
        self.val_metrics = self.measures(self.spec).of_split(metrics or {}, metric_of)
        self.test_metrics = self.measures(self.spec).of_split(metrics or {}, metric_of)
        self.gathered = Gathered()

    # What a subclass says

    @abstractmethod
    def compute(self, batch: Batch, stage: Stage) -> Outputs:
        """Returns the loss and the outputs of a batch, without padding; in training with augmentation."""

    def outputs(self) -> int:
        """Returns how many numbers the network returns for an image; `self.hparams` has all arguments."""
        return self.spec.num_classes

    def check_targets(self, targets: Tensor) -> None:
        """Raises UserError for the targets of a split that are of another kind than this task's."""

    def build_loss(self, loss: dict[str, Any]) -> nn.Module:
        """Returns the training loss of conf/loss."""
        return build_loss(loss, None, self.outputs())

    @classmethod
    def measures(cls, spec: DataSpec) -> Measures:
        """Returns what is measured; none but the loss."""
        return Measures()

    def measured(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Returns what metrics of the config get: such as probabilities, and targets."""
        return outputs.logits, outputs.targets

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """Returns what a test keeps of each sample, by name."""
        kept = {"targets": outputs.targets, "outputs": outputs.logits}
        return kept if all(len(value) == len(outputs.targets) for value in kept.values()) else {}

    def summary(self, tested: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns more values of a test, computed from what it kept of all samples."""
        return {}

    def fitted(self, tested: dict[str, Tensor]) -> dict[str, Any]:
        """Fits numbers on what the validation split's test kept, sets them, and returns them as attributes
        for the checkpoint."""
        return {}

    def report(self, metrics: dict[str, float], images: ImageDataset) -> "Report":
        """Returns the report of the last test."""
        from imgcls.report.report import Report, table_of

        return Report(metrics, table_of(self.tested, images))

    def averaged(self, views: Sequence[Outputs], targets: Tensor) -> Outputs:
        """Returns the outputs of images with these targets whose views, by `tta`, have these outputs."""
        raise UserError(f"tta={self.tta}: {type(self).__name__} does not say how views are averaged")

    def answers(self, images: Tensor, top_k: int | None = None) -> Answers:
        """Returns what `imgcls predict` writes of `images (N, C, H, W) uint8`, or of crops of them `(N, 5, C,
        H, W)`, at most `top_k` labels of each; with `tta` the mean over views."""
        return Answers(None, list(torch.stack([self(view) for view in self.views_of(images)]).mean(0)))

    def export_facts(self) -> dict[str, Any]:
        """Returns what the user of an exported network must know of its outputs, as plain values by name."""
        return {}

    # The loop

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch; what is measured stays on the device until the epoch's end."""
        if [self.current_epoch, batch_idx] in self.skipped:
            return self.skipped_loss()
        outputs = self.compute(batch, "train")
        check_loss(getattr(outputs, "loss", outputs))
        for term in self.loss_terms:
            outputs = outputs._replace(loss=term(self, outputs))
        self.train_metrics.update(outputs._replace(logits=outputs.logits.detach()), self.measured)
        return outputs.loss

    def on_train_epoch_end(self) -> None:
        values = {f"train/{name}": value for name, value in self.train_metrics.compute_and_reset().items()}
        self.log_dict(values | {"lr": torch.tensor(self.first_rate)})

    def evaluate(self, batch: Batch, stage: Stage) -> Outputs:
        """Returns the outputs of the samples that are not padding. Where all are, the network runs, too: the
        other processes may wait for it, and for metrics with states of the same shapes."""
        # Without padding nothing is read from the device.
        whole = self.trainer.world_size == 1 and data_of(self.trainer).on_error != "skip"
        empty = not whole and not batch.valid.any()
        kept = batch if whole or empty else Batch(*(part[batch.valid] for part in batch))
        views = [self.compute(kept._replace(images=view), stage) for view in self.views_of(kept.images)]
        outputs = views[0] if len(views) == 1 else self.averaged(views, kept.targets)
        return outputs.of_no_sample() if empty else outputs

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_metrics.update(self.evaluate(batch, "val"), self.measured)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.val_metrics.compute_and_reset().items()})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        outputs = self.evaluate(batch, "test")
        self.test_metrics.update(outputs, self.measured)
        self.gathered.update(batch.indices[batch.valid], self.predictions(outputs))

    def on_test_epoch_end(self) -> None:
        self.tested = self.gathered.rows()  # here, where the processes still are together
        self.gathered.reset()
        values = self.test_metrics.compute_and_reset() | self.summary(self.tested)
        self.log_dict({f"test/{name}": value for name, value in values.items()})

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["task"] = f"{type(self).__module__}.{type(self).__qualname__}"

    @classmethod  # in place of Lightning's, which runs code that comes from an address
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        *,
        trust: Sequence[str] = (),
    ) -> Self:
        """Returns the task of a checkpoint, for evaluation.

        Args:
            checkpoint_path: a file, or a run directory: its best checkpoint.
            map_location: the device.
            trust: packages, all of whose code may run, that a task or a network from outside of this package
                is from.

        Raises:
            UserError: an address, or a file that is missing, damaged, carries code, is of a task that is no
                `cls`, or names what isn't allowed (imgcls.config.allowed). Nothing of it was run then.
        """
        path = find_checkpoint(str(checkpoint_path))
        return restore(cls, load_content(path), path, trust).to(map_location)


def load_checkpoint(path: Path, trust: Sequence[str] = ()) -> tuple[Task, dict[str, Any]]:
    """Returns the task of a checkpoint and the config of its run. Raises UserError: as
    `Task.load_from_checkpoint`; or the config is missing, or of wrong types."""
    content = load_content(path)
    return restore(Task, content, path, trust), config_of(content, path)
