"""imgcls eval with metrics that the training did not have, and with a network of torchvision."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import RGB, write_checkpoint

from imgcls.data.digits import Digits

MCC = "metrics.mcc._target_=torchmetrics.classification.MulticlassMatthewsCorrCoef"


def test_metrics_beside_those_of_the_training(here: Callable[..., None]) -> None:
    write_checkpoint(Path("net.ckpt"), Digits().spec, "data=digits", "backbone.width=4")
    here("eval", "checkpoint=net.ckpt", "hydra.run.dir=plain")
    here("eval", "checkpoint=net.ckpt", "hydra.run.dir=more", f"+{MCC}", "metrics=[auroc]")
    plain, more = (json.loads(Path(run, "metrics.json").read_text()) for run in ("plain", "more"))
    assert more.keys() - plain.keys() == {"test/mcc", "test/auroc"}
    assert {name: more[name] for name in plain} == plain and -1 <= more["test/mcc"] <= 1
    page = Path("plain/index.html").read_text()
    assert "<td>net.ckpt</td>" in page and "test split" in page and "config of the training" not in page


def test_images_that_the_network_does_not_expect(
    here: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line asks for other images: it is told that it gets those of the checkpoint."""
    write_checkpoint(Path("net.ckpt"), RGB, "data=imagefolder", "data.root=x", "backbone.width=4")
    data = ["data=imagefolder", f"data.root={folder}", "data.num_workers=0", "split=all"]
    asked = ["data.crop_ratio=0.8", "data.mean=[0.1]"]
    here("eval", "checkpoint=net.ckpt", *data, *asked, "hydra.run.dir=other")
    said = capsys.readouterr().out
    assert "data.mean=[0.1] is not taken: the network expects [0.485,0.456,0.406]" in said
    assert "crop_ratio" not in said
    here("eval", "checkpoint=net.ckpt", *data, "hydra.run.dir=own")
    assert "is not taken" not in capsys.readouterr().out
    own, other = (Path(run, "metrics.json").read_text() for run in ("own", "other"))
    assert own == other


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
