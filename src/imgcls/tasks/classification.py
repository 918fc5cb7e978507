"""ImageClassifier: the task of naming the class of an image: training step, optimizer, evaluation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from imgcls.augment import Augment, BatchAugment
from imgcls.backbones.build import FIRST_WEIGHTS, build_network, rebuild_network
from imgcls.backbones.layers import head_names
from imgcls.config import check as configs
from imgcls.data.batch import Batch
from imgcls.errors import UserError
from imgcls.optim import Schedule, build_optimizer
from imgcls.spec import DataSpec
from imgcls.tasks.losses import build_loss
from imgcls.tasks.metrics import MeanLoss, Predictions, Scores
from imgcls.tasks.task import Task, data_of


class ImageClassifier(Task):
    """Trains and evaluates a network on batches of uint8 images. All arguments are plain Python, so that a
    checkpoint needs nothing beside itself: `ImageClassifier.load_from_checkpoint(path)`.

    Args:
        spec: the fields of the data's `DataSpec`.
        backbone: conf/backbone: `_target_` and its arguments.
        loss, optimizer, scheduler: conf/loss, conf/optimizer, conf/scheduler; evaluation needs none of them.
        augment: conf/augment; its part for the batch is applied here.
        class_weights: of each class in the training loss. Evaluation measures the plain negative
            log-likelihood, the mean over samples, whatever the training loss is.
        seed: of all that is drawn in training.
        channels_last: memory layout of network and images; faster wherever convolutions have kernels for it.
        fused: take fused optimizer steps where there are any.
        compile: compile the network with torch.compile.
        network: the backbone, where it is built already; it is no part of the settings.

    Callbacks set these attributes:
        train_size: the side of training images in pixels, where it is not the data's (ProgressiveResizing).
        rate_scales: the share of the learning rate that each parameter has, by name (Finetune).
        features_into: the part of the network that takes features in place of images (Finetune).
        distil: turns (classifier, images, logits, loss) into the loss with a teacher's part (Distillation).
    """

    train_size: int | None = None
    rate_scales: dict[str, float] | None = None
    features_into = ""
    distil: "Callable[[ImageClassifier, Tensor, Tensor, Tensor], Tensor] | None" = None

    loss: nn.Module
    scale: Tensor
    shift: Tensor
    tested: dict[str, Tensor]  # the predictions of the last test (see `Predictions`)

    def __init__(
        self,
        spec: dict[str, Any],
        backbone: dict[str, Any],
        loss: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        augment: dict[str, Any] | None = None,
        class_weights: list[float] | None = None,
        seed: int = 0,
        channels_last: bool = True,
        fused: bool = True,
        compile: bool = False,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["network"])
        # What a checkpoint is loaded into needs no first weights: neither a download nor the user's file.
        self.hparams["backbone"] = {k: v for k, v in backbone.items() if k not in FIRST_WEIGHTS}
        self.spec = DataSpec(**spec)
        classes, shape = self.spec.num_classes, (self.spec.channels, self.spec.image_size)
        self.network = network or build_network(backbone, classes, *shape, self.spec.class_names)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.network.compile()
        if loss is not None:
            self.loss = build_loss(loss, class_weights, classes)
        self.augment = BatchAugment(configs.typed(augment or {}, Augment, "augment"), self.spec)
        std = torch.tensor(self.spec.std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(self.spec.mean).view(-1, 1, 1) / std, persistent=False)
        self.train_loss = MeanLoss()
        self.train_top1 = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.val_scores, self.test_scores = Scores(classes), Scores(classes)
        self.unscaled_scores = Scores(classes)  # of the test's logits before the temperature
        self.predictions = Predictions()
        self.temperature = 1.0  # a checkpoint may bring another (imgcls.engine.evaluation)

    def normalise(self, images: Tensor, size: int | None = None) -> Tensor:
        """Returns `images (N, C, H, W) uint8` as floats with the data's mean 0 and deviation 1, and with the
        side `size` in pixels, by default that of the data."""
        size = size or self.spec.image_size
        out = images.to(self.scale.dtype).mul_(self.scale).add_(self.shift)
        if images.shape[-2:] != (size, size):
            out = nn.functional.interpolate(out, (size, size), mode="bilinear", antialias=True)
        if self.hparams["channels_last"]:
            out = out.contiguous(memory_format=torch.channels_last)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits `(N, K) float32` of `images (N, C, H, W) uint8`, divided by the temperature."""
        return self.raw_logits(images) / self.temperature

    def raw_logits(self, images: Tensor) -> Tensor:
        """Returns the network's own logits `(N, K)` of uint8 images, or of features `(N, D)`, in float32."""
        if images.is_floating_point():
            logits: Tensor = self.network.get_submodule(self.features_into)(images)
        else:
            logits = self.network(self.normalise(images))
        return logits.float()

    @property
    def head_name(self) -> str:
        """The module that gives the logits; the network's other heads are auxiliary."""
        return head_names(self.network)[0]

    # Training

    def on_fit_start(self) -> None:
        self.temperature = 1.0  # that of a checkpoint was of other weights

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch; what is measured stays on the device until the epoch's end."""
        if [self.current_epoch, batch_idx] in self.skipped:
            return self.skipped_loss()
        images, targets = batch.images, batch.targets
        if images.is_floating_point():  # features, computed once (imgcls.callbacks.finetune)
            outputs = self.raw_logits(images)
        else:
            images = self.augment.pixels(images)  # crop and mirror, in uint8
            images = self.normalise(images, self.train_size)
            images, targets = self.augment.mix(images, targets)  # erase, mix pairs
            outputs = self.network(images)
        logits, loss = self.training_loss(outputs, targets)
        if self.distil is not None:
            loss = self.distil(self, images, logits, loss)
        self.train_loss.update(loss.detach(), len(targets))
        self.train_top1.update(logits.detach(), targets.argmax(1) if targets.ndim == 2 else targets)
        return loss

    def training_loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits `(N, K) float32`, and the loss with that of auxiliary outputs."""
        logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        logits = logits.float()
        loss: Tensor = self.loss(logits, targets)
        for extra in auxiliary:
            weight = self.network.auxiliary_weight
            loss = loss + weight * self.loss(extra.float(), targets)  # type: ignore[operator]
        return logits, loss

    def on_train_epoch_end(self) -> None:
        values = {"train/loss": self.train_loss.compute(), "train/top1": self.train_top1.compute()}
        self.log_dict(values | {"lr": torch.tensor(self.first_rate)})
        self.train_loss.reset()
        self.train_top1.reset()

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.hparams["optimizer"], self.hparams["scheduler"]
        if optimizer is None or scheduler is None:
            fault = "this classifier was made without an optimizer and a scheduler"
            raise UserError(f"{fault}; it can only be evaluated")
        built = build_optimizer(optimizer, self.network, self.device, self.fused_steps(), self.rate_scales)
        steps = self.steps(self.trainer, data_of(self.trainer))
        schedule: Schedule = configs.build(scheduler, "scheduler", optimizer=built, steps=steps)
        for entry in schedule:  # what is measured in validation is there after the epochs that end with one
            if str(entry.get("monitor", "")).startswith("val/"):
                entry["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return [built], schedule

    # Evaluation

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the network's own logits, the targets and the indices of a batch, without padding."""
        logits = self.raw_logits(batch.images)
        if self.trainer.world_size == 1 and data_of(self.trainer).on_error != "skip":
            return logits, batch.targets, batch.indices  # there is none: nothing is read from the device
        kept = batch.targets >= 0
        return logits[kept], batch.targets[kept], batch.indices[kept]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        raw, targets, _ = self.evaluate(batch)
        if len(targets):
            self.val_scores.update(raw / self.temperature, targets)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.val_scores.compute_and_reset().items()})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        raw, targets, indices = self.evaluate(batch)
        if not len(targets):
            return
        logits, scaled = raw / self.temperature, self.temperature != 1
        self.test_scores.update(logits, targets)
        if scaled:
            self.unscaled_scores.update(raw, targets)
        self.predictions.update(logits, targets, indices, raw if scaled else None)

    def on_test_epoch_end(self) -> None:
        values = self.test_scores.compute_and_reset()
        if self.temperature != 1:
            before = self.unscaled_scores.compute_and_reset()
            values |= {f"{name}_unscaled": before[name] for name in ("loss", "calibration_error")}
            values["temperature"] = torch.tensor(self.temperature)
        self.log_dict({f"test/{name}": value for name, value in values.items()})
        self.tested = self.predictions.compute()  # here, where the processes still are together
        self.predictions.reset()

    # Checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.temperature = float(checkpoint.get("temperature", 1.0))
        if not 0 < self.temperature < math.inf:
            raise UserError(f"the checkpoint's temperature is {self.temperature}; expected a number above 0")

    @classmethod
    def rebuilt(cls, parameters: Mapping[str, Any], trust: Sequence[str]) -> Self:
        """Returns a classifier of a checkpoint's hyper-parameters; it has no loss and no optimizer."""
        spec: DataSpec = configs.typed(dict(parameters["spec"]), DataSpec, "spec")
        network = rebuild_network(parameters["backbone"], spec, trust)
        last = bool(parameters.get("channels_last", True))
        return cls(asdict(spec), dict(parameters["backbone"]), channels_last=last, network=network)
