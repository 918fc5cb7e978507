"""Export formats: writes a classifier as ONNX or for torch.export, and compares the file with it."""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier

SHAPES = {"images": {0: torch.export.Dim("batch")}}


def metadata(spec: DataSpec) -> dict[str, str]:
    """Returns what a user of the file must know of classes and images; each value is JSON.

    An image's short side is to be resized to `resize` pixels, with antialiasing, and the centre square of
    `image_size` cut.
    """
    facts = asdict(spec) | {"resize": spec.resize}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


class Whole(nn.Module):
    """Normalisation, network and temperature: `images (N, C, H, W) uint8` to logits `(N, K)`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.network, self.temperature = classifier.network, classifier.temperature
        self.register_buffer("scale", classifier.get_buffer("scale"))
        self.register_buffer("shift", classifier.get_buffer("shift"))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.float() * self.scale + self.shift)
        return logits if self.temperature == 1 else logits / self.temperature


def write_onnx(
    network: nn.Module, images: Tensor, path: Path, facts: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    """Writes an ONNX file, `images` to `logits`; returns a function that runs it."""
    import onnxruntime

    for name in ("onnxscript", "onnx_ir"):  # they log each of their steps
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own code gives them
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=SHAPES,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(facts)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def write_torch_export(
    network: nn.Module, images: Tensor, path: Path, facts: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    """Writes a program of torch.export with the facts as its `metadata.json`; returns a function for it."""
    program = torch.export.export(network, (images,), dynamic_shapes=SHAPES)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts)})
    return torch.export.load(path).module()


def compare(
    classifier: ImageClassifier, written: Callable[[Tensor], Tensor], batches: Sequence[Tensor]
) -> tuple[float, float]:
    """Returns the largest difference of a logit from the checkpoint's and the largest logit (absolute)."""
    with torch.inference_mode():
        expected = torch.cat([classifier(images) for images in batches])
        found = torch.cat([written(images) for images in batches])
    return float((found - expected).abs().max()), float(expected.abs().max())
