"""imgcls export: writes the network of a checkpoint as one file that runs without this package; checks it."""

import importlib.util
import itertools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_model
from torch import Tensor

from imgcls.commands.eval import data_config
from imgcls.commands.export_formats import metadata
from imgcls.commands.predict import appearing, check_out
from imgcls.config.paths import shown
from imgcls.data.files import Failure, Files, images_of
from imgcls.engine.build import build_data, prepare
from imgcls.errors import UserError
from imgcls.runs.checkpoints import find_checkpoint
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.loading import load_checkpoint

log = logging.getLogger(__name__)

BATCHES = (1, 7)  # sizes at which the file is compared with the checkpoint
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}  # packages


@dataclass(frozen=True)
class ExportConfig:
    """Keys of conf/export.yaml."""

    checkpoint: str
    trust: list[str]
    out: str
    format: Literal["onnx", "torch_export"]
    overwrite: bool
    images: str | None
    tolerance: Annotated[float, Field(gt=0)]


def main(config: ExportConfig, run_dir: Path) -> float:
    """Writes the file and its weights if they agree with the checkpoint; returns the largest difference."""
    out = Path(config.out).expanduser()
    weights = out.with_name(f"{out.name}.safetensors")
    check_out(out, (".onnx",) if config.format == "onnx" else (".pt2",), config.overwrite, weights)
    if missing := [name for name in NEEDED[config.format] if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"format=onnx needs {' and '.join(missing)}; in the clone: pip install -e '.[export]'"
        )

    classifier, trained = load_checkpoint(find_checkpoint(config.checkpoint), config.trust)
    prepare(trained["seed"])
    torch.set_float32_matmul_precision("highest")  # both sides of the comparison in full float32
    images, origin = real_images(config.images, trained, classifier.spec, config.trust)
    network = classifier.network.to(memory_format=torch.contiguous_format)
    try:
        with appearing(out.parent) as folder:
            difference, facts = write_checked(config, classifier, images, origin, folder / out.name)
            save_model(network, str(folder / weights.name), metadata=metadata(classifier.spec))
    except OSError as error:
        raise UserError(
            f"out={out} can't be written ({error.strerror or error}); free some disk or give another"
        ) from error
    log.info("largest difference from the checkpoint: %s", facts)
    log.info("exported: %s (%.1f MB), weights: %s", shown(out), out.stat().st_size / 1e6, shown(weights))
    return difference


def write_checked(
    config: ExportConfig, classifier: ImageClassifier, images: Tensor, origin: str, path: Path
) -> tuple[float, str]:
    """Writes the file and runs it; returns the largest difference of a logit, and words for it.

    Raises:
        UserError: the difference is above `tolerance` and above that share of the largest logit, with which
            rounding grows.
    """
    from imgcls.commands.export_formats import Whole, compare, metadata, write_onnx, write_torch_export

    write = write_onnx if config.format == "onnx" else write_torch_export
    written = write(Whole(classifier), images[:2], path, metadata(classifier.spec))
    difference, largest = compare(classifier, written, [images[:size] for size in BATCHES])
    allowed = config.tolerance * max(1.0, largest)
    facts = f"{difference:.2g} on logits of up to {largest:.2g} (batches of 1 and 7, {origin})"
    if not difference <= allowed < math.inf:  # also where it is no number
        checkpoint = shown(find_checkpoint(config.checkpoint))
        raise UserError(
            f"out={Path(config.out).expanduser()} was not kept: it differs from {checkpoint} by {facts}; "
            f"expected at most {allowed:.2g}; tolerance=… allows more"
        )
    return difference, facts


def real_images(
    folder: str | None, trained: dict[str, Any], spec: DataSpec, trust: list[str]
) -> tuple[Tensor, str]:
    """Returns images `(7, C, H, W) uint8` to compare on, and the words for where they are from.

    They are from the folder if one is given, else from the test of the training's data, else random.
    """

    most = max(BATCHES)
    if folder is not None:
        failures: list[Failure] = []
        paths = list(itertools.islice(images_of("images", folder, failures), most))
        found, _, failures = Files(spec).__getitems__(paths)
        if found is None:
            raise UserError(f"images={folder}: {failures[0][0]} can't be read as an image ({failures[0][1]})")
        return found[torch.arange(most) % len(found)], f"images of {folder}"
    try:
        test = build_data(data_config(trained, {}, spec, trust), None, trained["seed"]).sets["test"]
        return torch.stack([test.picture(i % len(test)) for i in range(most)]), "test images"
    except (UserError, OSError) as error:
        reason = " ".join(str(error).split())
        log.warning("checked on random pixels; images=FOLDER gives real ones (%s)", reason)
        size = (most, spec.channels, spec.image_size, spec.image_size)
        return torch.randint(0, 256, size, dtype=torch.uint8), "random pixels"
