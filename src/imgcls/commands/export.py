"""imgcls export: writes the network of a checkpoint as one file that runs without this package; checks it."""

import importlib.util
import itertools
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_model
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from imgcls.backbones.lora import merged
from imgcls.commands.eval import data_config
from imgcls.commands.evaluated import Chosen, load_chosen
from imgcls.commands.outputs import appearing, check_out
from imgcls.config.paths import shown
from imgcls.data.files import Failure, Files, images_of
from imgcls.data.module import Place
from imgcls.engine.build import build_data, prepare
from imgcls.errors import UserError
from imgcls.spec import DataSpec, checked_size
from imgcls.tasks.task import Task

log = logging.getLogger(__name__)
BATCHES = (1, 7)  # sizes at which the file is compared with the checkpoint
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}  # packages
SHAPES = {"images": {0: torch.export.Dim("batch")}}
Run = Callable[[Tensor], Tensor]  # a file that was written, as a function of images


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Chosen):
    """Keys of conf/export.yaml."""

    out: Place
    format: Literal["onnx", "torch_export"]
    overwrite: bool
    images: Place | None
    tolerance: Annotated[float, Field(gt=0)]


def main(config: ExportConfig, run_dir: Path) -> float:
    """Writes the file and its weights if they agree with the checkpoint; returns the largest difference."""
    out = Path(config.out).expanduser()
    weights = out.with_name(f"{out.name}.safetensors")
    check_out(out, (".onnx",) if config.format == "onnx" else (".pt2",), config.overwrite, weights)
    if missing := [name for name in NEEDED[config.format] if importlib.util.find_spec(name) is None]:
        advice = "in the clone: pip install -e '.[export]'"
        raise UserError(f"format=onnx needs {' and '.join(missing)}; {advice}")
    task, trained, name = load_chosen(config)
    prepare(trained["seed"])
    torch.set_float32_matmul_precision("highest")  # both sides of the comparison in full float32
    images, origin = real_images(config.images, trained, task.spec, config.trust)
    network = merged(task.network.to(memory_format=torch.contiguous_format))
    with appearing(out) as folder:
        difference, facts = write_checked(config, task, network, name, images, origin, folder / out.name)
        # In the other file the temperature is a part of the network
        save_model(network, str(folder / weights.name), metadata=metadata(task, temperature=task.temperature))
    log.info("largest difference from the checkpoint: %s", facts)
    log.info("exported: %s (%.1f MB), weights: %s", shown(out), out.stat().st_size / 1e6, shown(weights))
    return difference


def write_checked(
    config: ExportConfig, task: Task, network: nn.Module, name: str, images: Tensor, origin: str, path: Path
) -> tuple[float, str]:
    """Writes the network and runs the file; returns the largest difference of a logit, and words for it.
    Raises UserError where it is above `tolerance`, and above that share of the largest logit: rounding grows
    with it."""
    write = write_onnx if config.format == "onnx" else write_torch_export
    written = write(Whole(task, network), images[:2], path, metadata(task))
    difference, largest = compare(task, written, [images[:size] for size in BATCHES])
    allowed = config.tolerance * max(1.0, largest)
    facts = f"{difference:.2g} on logits of up to {largest:.2g} (batches of 1 and 7, {origin})"
    if not difference <= allowed < math.inf:  # also where it is no number
        what = f"out={Path(config.out).expanduser()} was not kept: it differs from {name} by {facts}"
        raise UserError(f"{what}; expected at most {allowed:.2g}; tolerance=… allows more")
    return difference, facts


def real_images(
    folder: str | None, trained: dict[str, Any], spec: DataSpec, trust: list[str]
) -> tuple[Tensor, str]:
    """Returns images `(7, C, H, W) uint8` to compare on, and the words for where they are from: the folder if
    one is given, else the test of the training's data, else chance."""
    most = max(BATCHES)
    if folder is not None:
        failures: list[Failure] = []
        paths = list(itertools.islice(images_of("images", folder, failures), most))
        found, _, failures = Files(spec).__getitems__(paths)
        if found is None:
            raise UserError(f"images={folder}: {failures[0][0]} can't be read as an image ({failures[0][1]})")
        return found[torch.arange(most) % len(found)], f"images of {folder}"
    try:
        test = build_data(data_config(trained, {}, spec, trust), None, trained["seed"], "test").sets["test"]
        pictures = torch.stack([test.picture(i % len(test)) for i in range(most)])
        if pictures.shape[-2:] != spec.size:  # of a set in memory, which the device resizes
            pictures = functional.resize(pictures, list(spec.size), antialias=True)
        return pictures, "test images"
    except (UserError, OSError) as error:
        reason = " ".join(str(error).split())
        log.warning("checked on random pixels; images=FOLDER gives real ones (%s)", reason)
        size = (most, spec.channels, *spec.size)
        return torch.randint(0, 256, size, dtype=torch.uint8), "random pixels"


def metadata(task: Task, **more: float) -> dict[str, str]:
    """Returns what a user of the file must know of classes, images and outputs; each value is JSON. An image
    is to be resized to `resize` pixels as `fit` says (`DataSpec`), with antialiasing, and the centre of
    `image_size` cut; either is the side of a square, or [height, width]. Probabilities are the `activation`
    of the logits; of several labels, those above their `thresholds` are given."""
    facts = asdict(task.spec) | {"resize": checked_size(task.spec.resize)} | task.export_facts() | more
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


class Whole(nn.Module):
    """Normalisation, network and temperature: `images (N, C, H, W) uint8` to logits `(N, K)`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, task: Task, network: nn.Module) -> None:
        super().__init__()
        self.network, self.temperature = network, task.temperature
        self.register_buffer("scale", task.get_buffer("scale"))
        self.register_buffer("shift", task.get_buffer("shift"))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.float() * self.scale + self.shift)
        return logits if self.temperature == 1 else logits / self.temperature


def write_onnx(network: nn.Module, images: Tensor, path: Path, facts: dict[str, str]) -> Run:
    """Writes an ONNX file, `images` to `logits`; returns a function that runs it."""
    import onnxruntime

    for name in ("onnxscript", "onnx_ir"):  # they log each of their steps
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own code gives them
        given: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
        given["dynamic_shapes"] = SHAPES
        program = torch.onnx.export(network, (images,), dynamo=True, verbose=False, **given)
    assert program is not None
    program.model.metadata_props.update(facts)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def write_torch_export(network: nn.Module, images: Tensor, path: Path, facts: dict[str, str]) -> Run:
    """Writes a program of torch.export with the facts as its `metadata.json`; returns a function for it."""
    program = torch.export.export(network, (images,), dynamic_shapes=SHAPES)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts)})
    return torch.export.load(path).module()


def compare(task: Task, written: Run, batches: Sequence[Tensor]) -> tuple[float, float]:
    """Returns the largest difference of a logit from the checkpoint's and the largest logit (absolute)."""
    with torch.inference_mode():
        expected = torch.cat([task(images) for images in batches])
        found = torch.cat([written(images) for images in batches])
    return float((found - expected).abs().max()), float(expected.abs().max())
