"""A run on a streamed set goes on within an epoch, and its epochs are whole (docs/reliability.md)."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packs import packed

from imgcls.data.loading import shards
from imgcls.engine.signals import STOPPED

pytestmark = pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
OPTIONS = [
    "data=streaming", "data.root=out", "data.batch_size=4", "augment.crop=resized", "logger=csv",
    "test=false", "trainer.max_epochs=3", "backbone=simple_cnn", "trainer.log_every_n_steps=3",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shard"), [(0, 5_000), (2, 5_000), (2, "64MB")])
def test_it_goes_on(
    train: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int, shard: Any
) -> None:
    monkeypatch.setattr(shards, "SHARD", shard)
    packed(folder, format="litdata")
    options = [*OPTIONS, f"data.num_workers={workers}"]
    assert train(*options, "hydra.run.dir=cut", stop=2) == STOPPED
    other = train("resume=cut", "data=streaming", "data.root=out", f"data.num_workers={1 if workers else 2}")
    assert f"this epoch of the stream began with {workers or 1}; go on with that" in other
    assert train("resume=cut", stop=4) == STOPPED  # in the same epoch
    assert train("resume=cut", stop=5) == STOPPED  # at its end
    assert train("resume=cut", stop=8) == STOPPED  # in the next
    assert train("resume=cut") is None
    assert torch.load("cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 18
    with Path("cut/metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "11", "17"]
