"""ImageClassifier: one network, its loss, its optimizer, and what is measured of it."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from imgcls import config as configs
from imgcls.augment import Augment, BatchAugment
from imgcls.backbones.build import build_network
from imgcls.data.base import Batch, ImageDataModule
from imgcls.data.spec import DataSpec
from imgcls.errors import UserError
from imgcls.keyed import key_seed
from imgcls.metrics import Evaluation, MeanLoss, Predictions, metric_names
from imgcls.optimizers import build_optimizer
from imgcls.schedulers import Steps


class ImageClassifier(LightningModule):
    """Trains and evaluates a network on batches of uint8 images.

    All arguments are plain Python, so that a checkpoint needs nothing beside itself:
    `ImageClassifier.load_from_checkpoint(path)`.

    Args:
        spec: the fields of the data's `DataSpec`.
        backbone: conf/backbone: `_target_` and its arguments.
        loss, optimizer, scheduler: conf/loss, conf/optimizer, conf/scheduler; a network that is only
            evaluated needs no optimizer and no scheduler.
        augment: conf/augment; its part for the batch is applied here.
        class_weights: of each class in the training loss; evaluation counts samples alike.
        seed: of all that is drawn in training.
        channels_last: memory layout of network and images; faster wherever convolutions have kernels for it.
        fused: take fused optimizer steps where there are any.
        compile: compile the network with torch.compile.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        backbone: dict[str, Any],
        loss: dict[str, Any],
        optimizer: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        augment: dict[str, Any] | None = None,
        class_weights: list[float] | None = None,
        seed: int = 0,
        channels_last: bool = True,
        fused: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        # What a checkpoint is loaded into needs no first weights: neither a download nor the user's file.
        self.hparams["backbone"] = {k: v for k, v in backbone.items() if k not in ("pretrained", "weights")}
        self.spec = DataSpec(**spec)
        classes = self.spec.num_classes
        self.network = build_network(backbone, classes, self.spec.channels, self.spec.image_size)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.network.compile()
        if class_weights is not None and len(class_weights) != classes:
            raise UserError(
                f"class_weights has {len(class_weights)} numbers; expected one for each of {classes} classes"
            )
        weight = None if class_weights is None else torch.tensor(class_weights)
        self.loss: nn.Module = configs.build(loss, "loss", nn.Module, **({} if weight is None else {"weight": weight}))
        # Without class weights a mean over samples is the same for every batch size and number of processes.
        self.evaluation_loss: nn.Module = configs.build(loss, "loss", nn.Module)
        self.augment = BatchAugment(configs.typed(augment or {}, Augment, "augment"), self.spec)
        std = torch.tensor(self.spec.std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(self.spec.mean).view(-1, 1, 1) / std, persistent=False)
        self.train_loss = MeanLoss()
        self.train_top1 = MulticlassAccuracy(classes, average="micro", validate_args=False)
        for split in ("val", "test"):
            setattr(self, f"{split}_loss", MeanLoss())
            setattr(self, f"{split}_metrics", Evaluation(classes))
        self.predictions = Predictions()
        self.train_size: int | None = None  # of training images, where it is not the data's

    def normalise(self, images: Tensor, size: int | None = None) -> Tensor:
        """Returns `images (N, C, H, W) uint8` as floats with the data's mean 0 and deviation 1, at its size or another."""
        size = size or self.spec.image_size
        out = images.to(self.scale.dtype).mul_(self.scale).add_(self.shift)  # type: ignore[arg-type, union-attr]
        if images.shape[-2:] != (size, size):
            out = F.interpolate(out, (size, size), mode="bilinear", antialias=True)
        if self.hparams["channels_last"]:
            out = out.contiguous(memory_format=torch.channels_last)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits `(N, K)` of `images (N, C, H, W) uint8`."""
        return self.network(self.normalise(images))  # type: ignore[no-any-return]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(key_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank))

    def on_train_epoch_start(self) -> None:
        self.first_rate = self.trainer.optimizers[0].param_groups[0]["lr"]  # of the epoch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = self.normalise(self.augment.pixels(batch.images), self.train_size)
        images, targets = self.augment.mix(images, batch.targets)
        logits, loss = self.training_loss(self.network(images), targets)
        self.train_loss.update(loss.detach(), len(targets))  # on the device; read once an epoch
        self.train_top1.update(logits.detach(), targets.argmax(1) if targets.ndim == 2 else targets)
        return loss

    def training_loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits `(N, K)` in float32, and the loss with that of auxiliary outputs."""
        logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        logits = logits.float()
        loss: Tensor = self.loss(logits, targets)
        for extra in auxiliary:
            loss = loss + self.network.auxiliary_weight * self.loss(extra.float(), targets)  # type: ignore[operator]
        return logits, loss

    def on_train_epoch_end(self) -> None:
        values = {"train/loss": self.train_loss.compute(), "train/top1": self.train_top1.compute()}
        values["lr"] = torch.tensor(self.first_rate)
        self.log_dict(values)
        self.train_loss.reset()
        self.train_top1.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        images, targets, indices = batch
        logits = self(images).float()
        if self.trainer.world_size > 1:  # padding keeps the ranks in step and counts nowhere
            kept = targets >= 0
            logits, targets, indices = logits[kept], targets[kept], indices[kept]
            if not len(targets):
                return
        getattr(self, f"{split}_loss").update(self.evaluation_loss(logits, targets), len(targets))
        getattr(self, f"{split}_metrics").update(logits, targets)
        if split == "test":
            self.predictions.update(logits, targets, indices)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")
        self.tested = self.predictions.compute()  # here, where the processes still are together
        self.predictions.reset()

    def _log_evaluation(self, split: str) -> None:
        loss, metrics = getattr(self, f"{split}_loss"), getattr(self, f"{split}_metrics")
        values = {"loss": loss.compute(), **metrics.compute()}
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})
        loss.reset()
        metrics.reset()

    def logged_names(self) -> set[str]:
        """Returns the names that a callback or a schedule may monitor."""
        names = {"train/loss", "train/top1", "lr", "images_per_second", "val/loss"}
        return names | {f"val/{name}" for name in metric_names(self.spec.num_classes)}

    def configure_model(self) -> None:
        if self._trainer is None:  # loaded from a checkpoint, to be used without a trainer
            return
        strategy = self.trainer.strategy
        if not isinstance(strategy, ModelParallelStrategy) or isinstance(self.network, FSDPModule):
            return  # not sharded, or sharded already
        mesh = strategy.device_mesh["data_parallel"]
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # all it can shard
        for module in (*self.network.children(), self.network):
            if any(True for _ in module.parameters()):
                fully_shard(module, mesh=mesh)

    def configure_optimizers(self) -> Any:
        if self.hparams["optimizer"] is None or self.hparams["scheduler"] is None:
            raise UserError("this classifier was made without an optimizer and a scheduler; it can only be evaluated")
        optimizer = build_optimizer(self.hparams["optimizer"], self.network, self.device, self.fused_steps())
        steps = self.steps(self.trainer, self.trainer.datamodule)  # type: ignore[attr-defined]
        schedule = configs.build(self.hparams["scheduler"], "scheduler", optimizer=optimizer, steps=steps)
        for entry in schedule:  # what is measured in validation is there after the epochs that end with one
            if str(entry.get("monitor", "")).startswith("val/"):
                entry["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return [optimizer], schedule

    def fused_steps(self) -> bool:
        """Whether the optimizer may take fused steps."""
        scaled = self.trainer.precision in ("16-mixed", "16")  # the gradient scaler unscales before a plain step
        sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        return bool(self.hparams["fused"]) and not scaled and not sharded

    @staticmethod
    def steps(trainer: Trainer, data: ImageDataModule) -> Steps:
        """Counts optimizer steps from settings. Lightning's own estimate sets the loaders up too early for an
        exact resume."""
        batches, limit = data.batches_per_epoch(trainer.world_size), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = max(-(-batches // trainer.accumulate_grad_batches), 1)
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            ends.append(per_epoch * trainer.max_epochs)
        return Steps(per_epoch, min(ends) if ends else None)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if not gradient_clip_val:
            return
        if self.trainer.precision in ("16-mixed", "16"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":  # Lightning refuses to clip for a fused step, with no need in bf16
            nn.utils.clip_grad_value_(self.network.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)
