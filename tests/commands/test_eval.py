"""imgcls eval with metrics that the training did not have, and with a network of torchvision."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint

from imgcls.data.digits import Digits

MCC = "metrics.mcc._target_=torchmetrics.classification.MulticlassMatthewsCorrCoef"


def test_metrics_beside_those_of_the_training(here: Callable[..., None]) -> None:
    write_checkpoint(Path("net.ckpt"), Digits().spec, "data=digits", "backbone.width=4")
    here("eval", "checkpoint=net.ckpt", "hydra.run.dir=plain")
    here("eval", "checkpoint=net.ckpt", "hydra.run.dir=more", f"+{MCC}", "metrics=[auroc]")
    plain, more = (json.loads(Path(run, "metrics.json").read_text()) for run in ("plain", "more"))
    assert more.keys() - plain.keys() == {"test/mcc", "test/auroc"}
    assert {name: more[name] for name in plain} == plain and -1 <= more["test/mcc"] <= 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("torchmetrics.classification.BinaryAccuracy", "metrics.mine does not fit this task"),
        ("torchmetrics.classification.MulticlassF1Scor", "no 'MulticlassF1Scor' there"),
    ],
)
def test_a_metric_that_does_not_fit(words: str, expected: str, said: Callable[..., str]) -> None:
    write_checkpoint(Path("net.ckpt"), Digits().spec, "data=digits", "backbone.width=4")
    assert expected in said("eval", "checkpoint=net.ckpt", f"+metrics.mine._target_={words}")
