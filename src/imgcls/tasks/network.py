"""NetworkModule: how the network of a task gets images, and takes exact steps that a seed decides."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from imgcls.augment.batch import BatchAugment
from imgcls.backbones.layers import head_names
from imgcls.data.batch import Batch
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.optim import Steps, build_optimizer, build_schedule, with_rate
from imgcls.seeding import key_seed, seed_others
from imgcls.spec import DataSpec, ImageSize, sides

Tta = Literal["flip", "five", "ten"]  # mirrored; four corners and the centre; these, and mirrored
WITH_SCALER = ("16-mixed", "16")  # precisions whose gradients are scaled


def data_of(trainer: Trainer) -> ImageDataModule:
    """Returns the data that a trainer reads."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, ImageDataModule)
    return data


class Features:
    """What went into a head: `inputs` of each call."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.inputs.append(inputs[0])

    def pooled(self) -> Tensor:
        """Returns those of the first call as `(N, D) float32`: of a head that is a convolution the mean over
        places."""
        features = self.inputs[0].float()
        return features.mean((2, 3)) if features.ndim == 4 else features


class NetworkModule(LightningModule):
    """A network on normalised images, in Lightning's training loop. A subclass makes it and what it needs.
    Its hyper-parameters have `seed` (of what is drawn in training), `fused` (take fused optimizer steps) and
    `channels_last`, `optimizer` and `scheduler`."""

    spec: DataSpec
    network: nn.Module
    loss: nn.Module
    augment: BatchAugment
    scale: Tensor  # (C, 1, 1), of uint8 pixels
    shift: Tensor  # (C, 1, 1)
    temperature = 1.0  # what logits are divided by
    rate_scales: dict[str, float] | None = None  # the share of the learning rate that each parameter has
    input_size: ImageSize | None = None  # of training images in pixels, where it is not the data's
    features_into = ""  # the part of the network that takes features in place of images
    tta: Tta | None = None  # the views of an image whose mean a test, or a prediction, gives
    first_rate: float  # the learning rate at the epoch's start

    def __init__(self) -> None:
        super().__init__()
        self.skipped: list[list[int]] = []  # batches [epoch, index] that had a loss that was not finite

    def normalise(self, images: Tensor, size: ImageSize | None = None) -> Tensor:
        """Returns `images (N, C, H, W) uint8`, or views `(N, V, C, H, W)`, as floats with the data's mean 0
        and deviation 1, and of a size in pixels, by default that of the data."""
        if images.ndim == 5:
            return self.normalise(images.flatten(0, 1), size).unflatten(0, images.shape[:2])
        shape = sides(size or self.spec.image_size)
        out = images.to(self.scale.dtype).mul_(self.scale).add_(self.shift)
        if images.shape[-2:] != shape:
            out = nn.functional.interpolate(out, shape, mode="bilinear", antialias=True)
        if self.hparams["channels_last"]:
            out = out.contiguous(memory_format=torch.channels_last)
        return out

    def views_of(self, images: Tensor) -> list[Tensor]:
        """Returns the views `(N, C, H, W)` of images, or of crops of them `(N, V, C, H, W)`, that `tta` takes
        the mean of; the first is the image as it is."""
        if self.tta is None:
            return [images]
        views = list(images.unbind(1)) if images.ndim == 5 else [images]
        return views if self.tta == "five" else [*views, *(view.flip(-1) for view in views)]

    def augmented(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns training images as the network takes them, with their targets: cropped, mirrored,
        normalised, changed by augment.batch, erased, and mixed, which turns targets into shares `(N, K)`.
        Views `(N, V, C, H, W)` are augmented each by itself; features stay as they are."""
        if images.is_floating_point():
            return images, targets
        images = self.augment.pixels(images)  # crop and mirror, in uint8
        images = self.normalise(images, self.input_size or self.spec.train_size)
        images, targets = self.augment.own(images, targets)
        return self.augment.mix(images, targets)  # erase, mix pairs

    def run(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the network's outputs for normalised images, or for features, in float32; those of
        auxiliary heads follow the first."""
        features = inputs.ndim == 2
        inputs = inputs.to(self.scale.dtype)
        outputs = self.network.get_submodule(self.features_into)(inputs) if features else self.network(inputs)
        return tuple(map(Tensor.float, outputs)) if isinstance(outputs, tuple) else (outputs.float(),)

    def raw_logits(self, images: Tensor) -> Tensor:
        """Returns the network's own logits `(N, K)` of uint8 images, or of features `(N, D)`, in float32."""
        return self.run(images if images.is_floating_point() else self.normalise(images))[0]

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits `(N, K) float32` of `images (N, C, H, W) uint8`, divided by the temperature."""
        return self.raw_logits(images) / self.temperature

    @contextmanager
    def features_kept(self) -> Iterator["Features"]:
        """Keeps what goes into the head while the network runs within."""
        kept = Features()
        hook = self.network.get_submodule(self.head_name).register_forward_pre_hook(kept.keep)
        try:
            yield kept
        finally:
            hook.remove()

    def training_loss(self, outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Returns the loss of the network's outputs, with that of auxiliary ones."""
        loss: Tensor = self.loss(outputs[0], targets)
        for extra in outputs[1:]:
            loss = loss + self.network.auxiliary_weight * self.loss(extra, targets)  # type: ignore[operator]
        return loss

    @property
    def head_name(self) -> str:
        """The module that gives the logits; the network's other heads are auxiliary."""
        return head_names(self.network)[0]

    # Steps

    def on_train_epoch_start(self) -> None:
        self.first_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed = key_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(seed)
        if self.augment.entries:
            seed_others(seed)

    def skipped_loss(self) -> Tensor:
        """Returns the loss of a skipped batch: 0, with gradients of 0."""
        return torch.stack([0 * p.sum() for p in self.network.parameters() if p.requires_grad]).sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Makes a step that of the mean over the batches that it accumulates: Lightning divides by
        `accumulate_grad_batches`, also where an epoch's last step has fewer."""
        every, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        first = done - done % every
        group = [[self.current_epoch, index] for index in range(first, int(min(first + every, batches)))]
        taught = sum(batch not in self.skipped for batch in group)
        super().backward(loss if taught in (0, every) else loss * (every / taught), *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if not gradient_clip_val:
            return
        if self.trainer.precision in WITH_SCALER:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":  # Lightning would refuse to clip for a fused step
            nn.utils.clip_grad_value_(self.network.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.hparams["optimizer"], self.hparams["scheduler"]
        if optimizer is None or scheduler is None:
            fault = "this task was made without an optimizer and a scheduler"
            raise UserError(f"{fault}; it can only be evaluated")
        data, trainer = data_of(self.trainer), self.trainer
        samples = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        optimizer = with_rate(optimizer, samples)
        built = build_optimizer(optimizer, self.network, self.device, self.fused_steps(), self.rate_scales)
        steps = self.steps(trainer, data)
        schedule = build_schedule(scheduler, built, steps)
        for entry in schedule:  # what is measured in validation is there after the epochs that end with one
            if str(entry.get("monitor", "")).startswith("val/"):
                entry.setdefault("frequency", self.trainer.check_val_every_n_epoch or 1)
        return [built], schedule

    def fused_steps(self) -> bool:
        """Says whether the optimizer may take fused steps, which neither unscale nor shard."""
        sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        return self.hparams["fused"] and not sharded and self.trainer.precision not in WITH_SCALER

    @staticmethod
    def steps(trainer: Trainer, data: ImageDataModule) -> Steps:
        """Counts optimizer steps by settings: Lightning's count sets up loaders too early for a resume."""
        batches, limit = data.batches_per_epoch(trainer.world_size), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = max(-(-batches // trainer.accumulate_grad_batches), 1)
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            ends.append(per_epoch * trainer.max_epochs)
        return Steps(per_epoch, min(ends) if ends else None)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves all to a device, but casts the network and its input alone, where Lightning casts all: sums
        and class weights would be wrong in half precision."""
        if dtype := kwargs.pop("dtype", None):
            self.network.to(dtype)
            for name, value in self.named_buffers(recurse=False):
                setattr(self, name, value.to(dtype))
        return super().to(*args, **kwargs) if args or kwargs else self

    def double(self) -> Self:
        return self.to(dtype=torch.float64)  # Lightning asks for it in 64-true

    def configure_model(self) -> None:
        """Shards the network, where the strategy asks for it and it is not sharded yet; in double precision
        it is so before a checkpoint is loaded, which Lightning would load in float32."""
        strategy = self.trainer.strategy
        if self.trainer.precision == "64-true":
            self.double()
        if not isinstance(strategy, ModelParallelStrategy) or isinstance(self.network, FSDPModule):
            return
        mesh = strategy.device_mesh["data_parallel"]
        # FSDP shards no other memory format.
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module in (*self.network.children(), self.network):
            if any(True for _ in module.parameters()):
                fully_shard(module, mesh=mesh)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_batches"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("skipped_batches", [])
        self.skipped = self.skipped + [batch for batch in saved if batch not in self.skipped]
