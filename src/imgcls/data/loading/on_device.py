"""Decoding on the device: workers read files, nvJPEG decodes the JPEGs of a batch, crops follow there.

nvJPEG rounds otherwise than the processor's decoder: a picture differs by a few of its 256 levels.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torchcodec.decoders
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imgcls.augment.image import of_torchvision
from imgcls.augment.settings import Augment, calls_of
from imgcls.data.batch import Batch
from imgcls.data.loading.decode import is_plain_jpeg
from imgcls.errors import UnreadableImage, UserError
from imgcls.spec import DataSpec


class Files(Protocol):
    """What is asked of a split's images (`FolderImages`)."""

    spec: DataSpec
    max_pixels: int
    decoded: Mapping[int, Tensor]  # images `(C, H, W) uint8` that are not decoded again

    def __len__(self) -> int: ...
    def __getitems__(self, keys: Sequence[int]) -> Batch: ...
    def content(self, index: int) -> np.ndarray: ...
    def read(self, index: int) -> Tensor: ...


class Encoded(NamedTuple):
    """A batch as a worker reads it: the bytes of all JPEGs in one tensor, one piece of shared memory.

    An image in neither place can't be read: the host tries again, and has the words for it.
    """

    keys: list[int]
    content: Tensor  # (n,) uint8
    lengths: list[int]  # of the JPEGs' bytes
    jpegs: list[int]  # their indices
    others: dict[int, Tensor]  # images by their indices, decoded `(C, H, W) uint8`: of other formats


class EncodedImages(Dataset[Encoded]):
    """What workers read: `images`, but JPEGs are not decoded."""

    def __init__(self, images: Files) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[int]) -> Encoded:
        jpegs, contents, others = list[int](), list[np.ndarray](), dict[int, Tensor]()
        for index in dict.fromkeys(max(key, 0) % len(self.images) for key in keys):
            try:
                content = self.images.content(index)
                if is_plain_jpeg(content, self.images.max_pixels):
                    jpegs.append(index)
                    contents.append(content)
                else:
                    others[index] = self.images.read(index)
            except (OSError, UnreadableImage):
                continue
        joined = torch.from_numpy(np.concatenate(contents)) if contents else torch.empty(0, dtype=torch.uint8)
        return Encoded(list(keys), joined, [len(content) for content in contents], jpegs, others)


class DeviceDecoder:
    """Makes the batches of `images` on a device, one ahead of the training step, in a stream of its own."""

    def __init__(self, images: Files, device: torch.device) -> None:
        self.images, self.device = images, device
        self.mode = "GRAY" if images.spec.channels == 1 else "RGB"
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, encoded: Iterator[Encoded]) -> Iterator[Batch]:
        """Yields the batches; the next one is decoded while the device computes with the one before."""
        ready: tuple[Batch, torch.cuda.Event | None] | None = None
        for one in encoded:
            following = self.started(one)
            if ready is not None:
                yield self.awaited(*ready)
            ready = following
        if ready is not None:
            yield self.awaited(*ready)

    def started(self, encoded: Encoded) -> tuple[Batch, torch.cuda.Event | None]:
        """Returns a batch, and the event that the device reaches when its images are there."""
        if self.stream is None:
            return self.batch(encoded), None
        # nvJPEG's hardware writes when it is called, not in the stream's order: also into memory that is free
        # but still read by work in the stream (pytorch/vision pull request 9606). That work is of the batch
        # before, mostly done; the training step is in another stream.
        self.stream.synchronize()
        with torch.cuda.stream(self.stream):
            images, *others = self.batch(encoded)
            return Batch(images, *(other.pin_memory() for other in others)), self.stream.record_event()

    def awaited(self, batch: Batch, event: torch.cuda.Event | None) -> Batch:
        """Returns a batch that the device's own stream can read."""
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            batch.images.record_stream(stream)
        return batch

    def batch(self, encoded: Encoded) -> Batch:
        """Decodes a batch and applies to each image what a worker would: its draws are those of its key."""
        contents = list(encoded.content.split(encoded.lengths)) if encoded.jpegs else []
        try:
            images = dict(zip(encoded.jpegs, self.decode(contents), strict=True))
        except RuntimeError:  # of one of them
            images = self.one_by_one(encoded.jpegs, contents)
        images |= {index: image.to(self.device) for index, image in encoded.others.items()}
        self.images.decoded = images
        try:
            batch = self.images.__getitems__(encoded.keys)
        finally:
            self.images.decoded = {}
        return batch._replace(images=batch.images.to(self.device))

    def decode(self, contents: list[Tensor]) -> list[Tensor]:
        if not contents:
            return []
        found = torchcodec.decoders.decode_jpeg(contents, mode=self.mode, device=self.device)  # type: ignore[arg-type]
        assert isinstance(found, list)
        return found

    def one_by_one(self, indices: list[int], contents: list[Tensor]) -> dict[int, Tensor]:
        """Returns those images that nvJPEG, or else the processor's decoder, can read."""
        images = dict[int, Tensor]()
        for index, content in zip(indices, contents, strict=True):
            try:
                images[index] = self.decode([content])[0]
            except RuntimeError:
                try:
                    images[index] = self.images.read(index).to(self.device)
                except UnreadableImage:
                    continue
        return images


def check_device_decoder(augment: Augment) -> None:
    """Decodes a JPEG on the GPU. Raises UserError: there is none, TorchCodec was built without CUDA, or an
    entry of `augment.image` is not torchvision's, and works on the processor."""
    otherwise = "or data.decode=cpu"
    for where, node in calls_of(augment.image, "augment.image").items():
        if not of_torchvision(node, where):
            given = f"data.decode=cuda: {where}={node['_target_']} works on the processor"
            raise UserError(f"{given}; expected transforms of torchvision, {otherwise}")
    expected = f"expected an NVIDIA GPU and a TorchCodec with CUDA, {otherwise}"
    if not torch.cuda.is_available():
        raise UserError(f"data.decode=cuda: there is no CUDA device here; {expected}")
    try:
        dot = io.BytesIO()
        Image.new("RGB", (8, 8)).save(dot, "JPEG")
        torchcodec.decoders.decode_jpeg(dot.getvalue(), device="cuda")
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"data.decode=cuda: {str(error).splitlines()[0]}; {expected}") from error


def training_device(trainer: Trainer | None) -> torch.device:
    """Returns the GPU of a training, or the first. Raises UserError: the training is on no GPU."""
    device = torch.device("cuda") if trainer is None else trainer.strategy.root_device
    if device.type != "cuda":
        raise UserError(
            f"data.decode=cuda: training is on {device.type}; expected the same, or data.decode=cpu"
        )
    return device
