"""Checkpoints of networks that were not trained."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imgcls.config.training import TrainerConfig
from imgcls.engine.build import build_trainer
from imgcls.engine.checkpoint import SaveConfig
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from support.composed import composed

RGB = DataSpec(("cat", "dog", "fox"), 3, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_ratio=0.8)


def write_checkpoint(
    path: Path, spec: DataSpec, *overrides: str, images: torch.Tensor | None = None, **changed: Any
) -> Path:
    """Writes the checkpoint of an untrained network, as a training would.

    It has batch statistics of `images`, by default of coloured squares. Without these the logits of some
    networks are in the thousands, and all confidences 1.
    """
    config = composed(*overrides) | {"cwd": str(Path.cwd())}
    torch.manual_seed(0)
    classifier = ImageClassifier(asdict(spec), config["backbone"], config["loss"])
    classifier.hparams.update(changed)
    for layer in (module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)):
        layer.momentum = 1.0
    with torch.no_grad():
        if images is None:
            images = torch.randint(0, 256, (16, spec.channels, 8, 8), dtype=torch.uint8)
        classifier.network.train()(classifier.normalise(images))  # at the network's size
    trainer = build_trainer(
        TrainerConfig(**config["trainer"] | {"accelerator": "cpu"}), [SaveConfig(config)], [], Path.cwd()
    )
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(path)
    return path
