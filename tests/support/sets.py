"""Data sets of conf/data."""

import torch

from imgcls.config.build import build
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import build_data
from support.composed import training


def check_set(choice: str, *overrides: str, read: bool = True) -> None:
    """Builds a choice of `data=`, and where its files are here reads a batch as training does."""
    config = training(f"data={choice}", *overrides)
    data = build(config.data, "data")
    assert isinstance(data, ImageDataModule)
    assert data.spec.num_classes == len(set(data.spec.class_names))
    assert len(data.spec.mean) == len(data.spec.std) == data.spec.channels
    if read:
        data = build_data(config.data, config.augment, seed=0)
        images, targets, *_ = next(iter(data.train_dataloader()))
        assert images.dtype == torch.uint8 and images.shape[1] == data.spec.channels
        assert len(images) == len(targets)
