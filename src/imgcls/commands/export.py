"""imgcls export: the network of a checkpoint as one file that needs nothing of this package, checked at once."""

import importlib.util
import itertools
import json
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from imgcls.commands.eval import data_config
from imgcls.commands.predict import appearing, check_out
from imgcls.commands.verb import verb
from imgcls.config.paths import shown
from imgcls.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imgcls.spec import DataSpec

log = logging.getLogger(__name__)

BATCHES = (1, 7)  # sizes at which the file is compared with the checkpoint


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


@verb("export", ExportConfig)
def main(config: ExportConfig, run_dir: Path) -> float:
    """Writes the file and its weights if they agree with the checkpoint; returns the largest difference of a logit.

    They agree where it is at most `tolerance`, or that share of the largest logit, by which rounding grows.
    """
    out = Path(config.out).expanduser()
    weights = out.with_name(f"{out.name}.safetensors")
    check_out(out, (".onnx",) if config.format == "onnx" else (".pt2",), config.overwrite, weights)
    packages = ("onnx", "onnxscript", "onnxruntime") if config.format == "onnx" else ()
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"format=onnx needs {' and '.join(missing)}; in the clone: pip install -e '.[export]'"
        )
    import torch

    from imgcls.engine.build import prepare
    from imgcls.runs.checkpoints import find_checkpoint
    from imgcls.tasks.classification import load_checkpoint

    path = find_checkpoint(config.checkpoint)
    classifier, trained = load_checkpoint(path, config.trust)
    prepare(trained["seed"])
    torch.set_float32_matmul_precision("highest")  # both sides of the comparison in full float32
    images, origin = real_images(config.images, trained, classifier.spec, config.trust)
    network = classifier.network.to(memory_format=torch.contiguous_format)
    try:
        with appearing(out.parent) as folder:
            write = write_onnx if config.format == "onnx" else write_torch_export
            written = write(whole(classifier), images[:2], folder / out.name, metadata(classifier.spec))
            difference, largest = compare(classifier, written, images)
            allowed = config.tolerance * max(1.0, largest)
            facts = f"{difference:.2g} on logits of up to {largest:.2g} (batches of 1 and 7, {origin})"
            if not difference <= allowed < math.inf:  # also where it is no number
                raise UserError(
                    f"out={out} was not kept: it differs from {shown(path)} by {facts}; expected at most {allowed:.2g}; "
                    "tolerance=… allows more"
                )
            write_weights(network, folder / weights.name, metadata(classifier.spec))
    except OSError as error:
        raise UserError(
            f"out={out} can't be written ({error.strerror or error}); free some disk or give another"
        ) from error
    log.info("largest difference from the checkpoint: %s", facts)
    log.info("exported: %s (%.1f MB), weights: %s", shown(out), out.stat().st_size / 1e6, shown(weights))
    return difference


def metadata(spec: "DataSpec") -> dict[str, str]:
    """Returns what a user of the file must know of classes and images; each value is JSON.

    An image's short side is resized to `resize` pixels, with antialiasing, and the centre square of `image_size` cut.
    """
    facts = asdict(spec) | {"resize": spec.resize}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def real_images(
    folder: str | None, trained: dict[str, Any], spec: "DataSpec", trust: list[str]
) -> "tuple[Tensor, str]":
    """Returns images `(7, C, H, W) uint8` to compare on, and where they are from."""
    import torch

    from imgcls.data.files import Failure, Files, images_of
    from imgcls.engine.build import build_data

    if folder is not None:
        failures: list[Failure] = []
        paths = list(itertools.islice(images_of("images", folder, failures), max(BATCHES)))
        found, _, failures = Files(spec).__getitems__(paths)
        if found is None:
            raise UserError(f"images={folder}: {failures[0][0]} can't be read as an image ({failures[0][1]})")
        return found[torch.arange(max(BATCHES)) % len(found)], f"images of {folder}"
    try:
        config = data_config(trained, {}, spec, trust)
        test = build_data(config, None, trained["seed"]).sets["test"]
        return torch.stack([test.picture(i % len(test)) for i in range(max(BATCHES))]), "test images"
    except (UserError, OSError) as error:
        log.warning(
            "checked on random pixels; images=FOLDER gives real ones (%s)", " ".join(str(error).split())
        )
        size = (max(BATCHES), spec.channels, spec.image_size, spec.image_size)
        return torch.randint(0, 256, size, dtype=torch.uint8), "random pixels"


def whole(classifier: Any) -> "nn.Module":
    """Returns the network with normalisation and temperature: `images (N, C, H, W) uint8` to logits `(N, K)`."""
    from torch import Tensor, nn

    class Whole(nn.Module):
        scale: Tensor
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = classifier.network
            self.register_buffer("scale", classifier.scale)
            self.register_buffer("shift", classifier.shift)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images.float() * self.scale + self.shift)
            return logits if classifier.temperature == 1 else logits / classifier.temperature

    return Whole().eval()


def write_onnx(
    network: "nn.Module", images: "Tensor", path: Path, facts: dict[str, str]
) -> "Callable[[Tensor], Tensor]":
    """Writes an ONNX file, `images` to `logits`; returns what runs it."""
    import onnxruntime
    import torch

    for name in ("onnxscript", "onnx_ir"):  # each step of theirs
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        shapes = {"images": {0: torch.export.Dim("batch")}}
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=shapes,
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
    network: "nn.Module", images: "Tensor", path: Path, facts: dict[str, str]
) -> "Callable[[Tensor], Tensor]":
    """Writes a program of torch.export with the facts as `metadata.json` in it; returns what runs it."""
    import torch

    program = torch.export.export(
        network, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
    )
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts)})
    return torch.export.load(path).module()


def write_weights(network: "nn.Module", path: Path, facts: dict[str, str]) -> None:
    """Writes the network's state dict, which backbone.weights=FILE takes."""
    from safetensors.torch import save_model

    save_model(network, str(path), metadata=facts)


def compare(classifier: Any, written: "Callable[[Tensor], Tensor]", images: "Tensor") -> tuple[float, float]:
    """Returns the largest difference of a logit from the checkpoint's, and the largest logit, in absolute value."""
    import torch

    differences, scale = [], 0.0
    with torch.inference_mode():
        for size in BATCHES:
            expected = classifier(images[:size])
            differences.append((written(images[:size]) - expected).abs().max())
            scale = max(scale, float(expected.abs().max()))
    return float(torch.stack(differences).max()), scale
