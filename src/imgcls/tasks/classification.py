"""ImageClassifier: one network, its loss, its optimizer, and what is measured of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from imgcls.augment.batch import BatchAugment
from imgcls.augment.image import Augment
from imgcls.backbones.build import FIRST_WEIGHTS, build_network, rebuild_network
from imgcls.config import check as configs
from imgcls.data.batch import Batch
from imgcls.errors import UserError
from imgcls.optim.optimizers import build_optimizer
from imgcls.runs.checkpoints import find_checkpoint, load_content
from imgcls.seeding import key_seed
from imgcls.spec import DataSpec
from imgcls.tasks.metrics import Evaluation, MeanLoss, Predictions, metric_names
from imgcls.tasks.task import Task, data_of


class ImageClassifier(Task):
    """Trains and evaluates a network on batches of uint8 images.

    All arguments are plain Python, so that a checkpoint needs nothing beside itself:
    `ImageClassifier.load_from_checkpoint(path)`.

    Args:
        spec: the fields of the data's `DataSpec`.
        backbone: conf/backbone: `_target_` and its arguments.
        loss, optimizer, scheduler: conf/loss, conf/optimizer, conf/scheduler; a network that is only
            evaluated needs none of them.
        augment: conf/augment; its part for the batch is applied here.
        class_weights: of each class in the training loss. Evaluation measures the plain negative log-likelihood, the
            mean over samples, whatever the training loss is.
        seed: of all that is drawn in training.
        channels_last: memory layout of network and images; faster wherever convolutions have kernels for it.
        fused: take fused optimizer steps where there are any.
        compile: compile the network with torch.compile.
        network: the backbone, where it is built already; it is no part of the settings.
    """

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
        classes = self.spec.num_classes
        shape = (classes, self.spec.channels, self.spec.image_size)
        self.network = network or build_network(backbone, *shape, self.spec.class_names)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.network.compile()
        if class_weights is not None and (
            len(class_weights) != classes or min(class_weights) < 0 or not any(class_weights)
        ):
            raise UserError(
                f"class_weights={class_weights}: expected {classes} numbers of 0 or more, not all 0"
            )
        weight = None if class_weights is None else torch.tensor(class_weights)
        if loss is not None:
            given: dict[str, Any] = {} if weight is None else {"weight": weight}
            self.loss: nn.Module = configs.build(loss, "loss", nn.Module, **given)
        self.augment = BatchAugment(configs.typed(augment or {}, Augment, "augment"), self.spec)
        std = torch.tensor(self.spec.std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(self.spec.mean).view(-1, 1, 1) / std, persistent=False)
        self.train_loss = MeanLoss()
        self.train_top1 = MulticlassAccuracy(classes, average="micro", validate_args=False)
        for split in ("val", "test", "unscaled"):  # unscaled: the test's logits before the temperature
            setattr(self, f"{split}_loss", MeanLoss())
            setattr(self, f"{split}_metrics", Evaluation(classes))
        self.predictions = Predictions()
        self.temperature = 1.0  # that a checkpoint brings (imgcls.engine.calibration); training never sees it
        self.distil: Callable[[ImageClassifier, Tensor, Tensor, Tensor], Tensor] | None = (
            None  # imgcls.callbacks.distillation
        )
        self.rate_scales: dict[str, float] | None = (
            None  # shares of the learning rate, by parameter (imgcls.callbacks.finetune)
        )
        self.features_into = (
            ""  # the part of the network that takes features in place of images (imgcls.callbacks.finetune)
        )
        self.train_size: int | None = None  # of training images, where it is not the data's
        self.skipped: list[
            list[int]
        ] = []  # batches [epoch, index] that teach nothing: their loss was not finite

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's own runs code that comes from an address
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        *,
        trust: Sequence[str] = (),
    ) -> Self:
        """Returns the classifier of a checkpoint, for evaluation: it has no loss, optimizer or augmentation.

        Args:
            checkpoint_path: a file, or a run directory: its best checkpoint.
            map_location: the device.
            trust: packages, all of whose code may run, that a network from outside of this package is defined in.

        Raises:
            UserError: an address, or a file that is missing, damaged, carries code, or names a network that isn't
                allowed (imgcls.config.allowed). Nothing that the file names was run then.
        """
        path = find_checkpoint(str(checkpoint_path))
        return cls.restored(load_content(path), path, trust).to(map_location)

    @classmethod
    def restored(cls, content: Mapping[str, Any], path: Path, trust: Sequence[str] = ()) -> Self:
        """Returns the classifier of a checkpoint's content, in evaluation mode on the CPU; raises UserError as above."""
        parameters = content["hyper_parameters"]
        try:
            spec: DataSpec = configs.typed(dict(parameters["spec"]), DataSpec, "spec")
            network = rebuild_network(parameters["backbone"], spec, trust)
            last = bool(parameters.get("channels_last", True))
            classifier = cls(asdict(spec), dict(parameters["backbone"]), channels_last=last, network=network)
            state = content["state_dict"]  # also of what training alone has, such as class weights
            own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
            network.load_state_dict(own)
            classifier.on_load_checkpoint(dict(content))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"checkpoint={path}: its weights are of another network than its settings say ({reason})"
            ) from error
        nn.Module.eval(classifier)
        return classifier

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts the network and its input alone, where Lightning casts all in the precisions bf16-true and 16-true: sums
        and weights in half precision would be wrong. All goes to the device."""
        super()._apply(fn, recurse=False)
        for name, child in self.named_children():
            child._apply(fn if name == "network" else lambda tensor: tensor.to(fn(tensor).device))
        return self

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
        """Returns the logits `(N, K) float32` of `images (N, C, H, W) uint8`, divided by the temperature."""
        return self.raw_logits(images) / self.temperature

    def raw_logits(self, images: Tensor) -> Tensor:
        """Returns the network's own logits `(N, K) float32`."""
        if images.is_floating_point():  # features, computed once (imgcls.callbacks.finetune)
            return self.network.get_submodule(self.features_into)(images).float()  # type: ignore[no-any-return]
        return self.network(self.normalise(images)).float()  # type: ignore[no-any-return]

    @property
    def head_name(self) -> str:
        """The module that gives the logits; the network's other heads are auxiliary."""
        return self.network.head_names[0]  # type: ignore[index, return-value, union-attr]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_batches"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped = self.skipped + [
            b for b in checkpoint.get("skipped_batches", []) if b not in self.skipped
        ]
        self.temperature = float(checkpoint.get("temperature", 1.0))
        if not 0 < self.temperature < math.inf:
            raise UserError(f"the checkpoint's temperature is {self.temperature}; expected a number above 0")

    def on_fit_start(self) -> None:
        self.temperature = 1.0  # it was of other weights

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(key_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank))

    def on_train_epoch_start(self) -> None:
        self.first_rate = self.trainer.optimizers[0].param_groups[0]["lr"]  # of the epoch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if [self.current_epoch, batch_idx] in self.skipped:
            return torch.stack([0 * p.sum() for p in self.network.parameters() if p.requires_grad]).sum()
        if batch.images.is_floating_point():
            outputs, targets = self.raw_logits(batch.images), batch.targets
        else:
            images = self.normalise(self.augment.pixels(batch.images), self.train_size)
            images, targets = self.augment.mix(images, batch.targets)
            outputs = self.network(images)
        logits, loss = self.training_loss(outputs, targets)
        if self.distil is not None:
            loss = self.distil(self, images, logits, loss)
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
        raw = self.raw_logits(images)
        if self.trainer.world_size > 1 or data_of(self.trainer).on_error == "skip":  # padding
            kept = targets >= 0
            raw, targets, indices = raw[kept], targets[kept], indices[kept]
            if not len(targets):
                return
        logits, scaled = raw / self.temperature, split == "test" and self.temperature != 1
        for name, values in ((split, logits), *([("unscaled", raw)] if scaled else [])):
            getattr(self, f"{name}_loss").update(F.cross_entropy(values, targets), len(targets))
            getattr(self, f"{name}_metrics").update(values, targets)
        if split == "test":
            self.predictions.update(logits, targets, indices, raw if scaled else None)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._evaluated("val").items()})

    def on_test_epoch_end(self) -> None:
        values = self._evaluated("test")
        if self.temperature != 1:
            before = self._evaluated("unscaled")
            values |= {f"{name}_unscaled": before[name] for name in ("loss", "calibration_error")}
            values["temperature"] = torch.tensor(self.temperature)
        self.log_dict({f"test/{name}": value for name, value in values.items()})
        self.tested = self.predictions.compute()  # here, where the processes still are together
        self.predictions.reset()

    def _evaluated(self, split: str) -> dict[str, Tensor]:
        loss, metrics = getattr(self, f"{split}_loss"), getattr(self, f"{split}_metrics")
        values: dict[str, Tensor] = {"loss": loss.compute(), **metrics.compute()}
        loss.reset()
        metrics.reset()
        return values

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
            raise UserError(
                "this classifier was made without an optimizer and a scheduler; it can only be evaluated"
            )
        optimizer = build_optimizer(
            self.hparams["optimizer"], self.network, self.device, self.fused_steps(), self.rate_scales
        )
        steps = self.steps(self.trainer, data_of(self.trainer))
        schedule = configs.build(self.hparams["scheduler"], "scheduler", optimizer=optimizer, steps=steps)
        for entry in schedule:  # what is measured in validation is there after the epochs that end with one
            if str(entry.get("monitor", "")).startswith("val/"):
                entry["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return [optimizer], schedule


class DataConfig(TypedDict, total=False):
    """What evaluation takes of the data config of a checkpoint, beside the arguments of its class."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    root: str | None
    exclude: str | None
    batch_size: Annotated[int, Field(ge=1)]


class RunConfig(TypedDict):
    """What evaluation takes of the config of a checkpoint's run."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    cwd: str
    data: DataConfig
    trainer: dict[str, Any]


def load_checkpoint(path: Path, trust: Sequence[str] = ()) -> tuple[ImageClassifier, dict[str, Any]]:
    """Returns the classifier of a checkpoint and the config of its run; raises UserError as `load_from_checkpoint`."""
    content = load_content(path)
    if not isinstance(content.get("config"), dict):
        raise UserError(f"checkpoint={path}: it was not written by imgcls train, and has no config of a run")
    missing: dict[str, Any] = {"seed": 0, "cwd": ".", "data": {}, "trainer": {}}
    config: dict[str, Any] = configs.typed(missing | content["config"], RunConfig, "the checkpoint's config")
    return ImageClassifier.restored(content, path, trust), config
