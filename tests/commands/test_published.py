"""Published weights without training: eval, predict and export of a backbone with a file of weights."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support.checkpoints import write_checkpoint
from torch import nn
from torchvision.transforms import v2

from imgcls.backbones.build import build_network
from imgcls.commands.evaluated import Chosen, load_chosen
from imgcls.data.digits import Digits
from imgcls.errors import UserError

CNN = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
NETWORK = "test_convnext2.r160_in1k"  # mean and deviation 0.5, bicubic, 160 of 168 pixels


@pytest.fixture
def weights(folder: Path, tmp_path: Path) -> Path:
    """A file of weights for 3 classes, such as tell the folder's pictures apart, without a word of images."""
    torch.manual_seed(0)
    network = timm.create_model(NETWORK.partition(".")[0], num_classes=3)
    nn.init.normal_(network.get_parameter("head.fc.weight"))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def script(weights: Path, files: list[Path], mean: float = 0.5, std: float = 0.5) -> np.ndarray:
    """Returns the probabilities that Pillow, torch and timm's published numbers give."""
    network = timm.create_model(NETWORK.partition(".")[0], num_classes=3)
    network.load_state_dict(torch.load(weights, weights_only=True))
    found = []
    for file in files:
        image = Image.open(file).convert("RGB")
        short = min(image.size)
        width, height = (round(side * 168 / short) for side in image.size)
        left, top = round((width - 160) / 2), round((height - 160) / 2)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        resized = resized.crop((left, top, left + 160, top + 160))
        pixels = (v2.functional.pil_to_tensor(resized) / 255 - mean) / std
        with torch.inference_mode():
            found.append(network.eval()(pixels[None]).softmax(1)[0].numpy())
    return np.array(found)


def predicted(path: str) -> dict[str, dict[str, float]]:
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["path"]: {row[f"label_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)} for row in rows
    }


def test_predictions_equal_a_plain_script(
    weights: Path, folder: Path, here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Mean, deviation, interpolation and crop are those of the weights, without being told; or the data's."""
    backbone = ["backbone=timm", f"backbone.name={NETWORK}", f"backbone.weights={weights}"]
    shared = ["predict", *backbone, "data=imagefolder", f"data.root={folder}", f"source={folder}"]
    here(*shared, "trainer.precision=32-true", "num_workers=0", "out=own.csv")
    said = capsys.readouterr().out
    assert f"as the weights expect (timm's {NETWORK})" in said and "weights: all " in said
    here(*shared, "trainer.precision=32-true", "num_workers=0", "out=data.csv", "backbone.preprocessing=data")
    own, data = predicted("own.csv"), predicted("data.csv")
    files = sorted(own)
    expected = script(weights, [Path(file) for file in files])
    found, other = (
        np.array([[table[file][name] for name in ("cat", "dog", "fox")] for file in files])
        for table in (own, data)
    )
    assert np.ptp(expected, axis=0).min() > 0.1  # the pictures are told apart
    rounding = np.abs(found - expected).max()  # Pillow rounds pixels between two passes, torch does not
    assert rounding < 0.02
    assert np.abs(other - expected).max() > 5 * rounding


@pytest.mark.parametrize("command", ["eval split=all", "predict source=pictures out=found.csv"])
def test_no_word_of_the_trainer(command: str, weights: Path, folder: Path, here: Callable[..., None]) -> None:
    """No training has had a trainer: the device and the precision are those of the machine."""
    backbone = ["backbone=timm", f"backbone.name={NETWORK}", f"backbone.weights={weights}"]
    verb, *words = command.split()
    here(verb, *words, *backbone, "data=imagefolder", "data.root=pictures", "hydra.run.dir=run")
    assert Path("run/metrics.json").exists() or Path("found.csv").exists()


def test_evaluated_and_exported(
    weights: Path, folder: Path, here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = ["backbone=timm", f"backbone.name={NETWORK}", f"backbone.weights={weights}"]
    data = ["data=imagefolder", f"data.root={folder}"]
    here("eval", *backbone, *data, "split=all", "trainer.precision=32-true", "hydra.run.dir=tested")
    with Path("tested/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"Test of {weights}" in capsys.readouterr().out
    expected = script(weights, [Path(row["name"]) for row in rows])
    assert [row["prediction"] for row in rows] == [("cat", "dog", "fox")[i] for i in expected.argmax(1)]
    here("export", *backbone, *data, "format=torch_export", "out=net.pt2", f"images={folder}")
    with safe_open("net.pt2.safetensors", framework="pt") as file:
        facts = {name: json.loads(text) for name, text in file.metadata().items()}
    assert (facts["mean"], facts["interpolation"], facts["image_size"]) == ([0.5] * 3, "bicubic", 160)
    assert (facts["resize"], facts["class_names"]) == (168, ["cat", "dog", "fox"])


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("eval", "checkpoint must be given: checkpoint=…; or backbone=NAME backbone.weights=FILE data=NAME"),
        ("predict source=FOLDER", "checkpoint must be given: checkpoint=…; or backbone=NAME"),
        ("export out=x.onnx", "checkpoint must be given: checkpoint=…; or backbone=NAME"),
        ("eval backbone=resnet20", "it has not learnt; give backbone.weights=FILE or backbone.pretra"),
        ("export out=x.onnx backbone=resnet20 backbone.weights=WEIGHTS", "weights do not say their classes"),
        ("eval backbone=resnet20 checkpoint=run", "the checkpoint has its own; leave backbone or checkpoint"),
        ("eval backbone=resnet20 backbone.weights=WEIGHTS data=digits", "fit this network"),
        ("eval backbone=resnet20 backbone.pretrained=true data=digits", "resnet_cifar has no such weights"),
        (
            "eval backbone=timm backbone.name=test_convnext2 backbone.pretrained=true data=cifar10",
            "timm's test_convnext2.r160_in1k has weights for 1000 classes, the data 10; train a head",
        ),
    ],
)
def test_what_can_not_be_evaluated(
    command: str, line: str, weights: Path, folder: Path, said: Callable[..., str]
) -> None:
    assert line in said(*command.replace("FOLDER", str(folder)).replace("WEIGHTS", str(weights)).split())


@pytest.mark.parametrize("kind", ["run", "export"])
def test_weights_of_several_labels(kind: str, said: Callable[..., str]) -> None:
    """Their logits are no shares of one class."""
    network, names = build_network(CNN, 10, 1, 8), list(Digits().spec.class_names)
    if kind == "export":
        facts = {"class_names": json.dumps(names), "activation": '"sigmoid"'}
        save_file(network.state_dict(), "net.safetensors", facts)
    else:
        write_checkpoint(Path("net.ckpt"), Digits().spec, "data=digits", "backbone.width=4")
        content = torch.load("net.ckpt", weights_only=True)
        torch.save(content | {"task": "imgcls.tasks.multilabel.MultiLabelClassifier"}, "net.ckpt")
    given = ["backbone=simple_cnn", "backbone.width=4", f"backbone.weights={next(Path().glob('net.*'))}"]
    line = said("eval", *given, "data=digits")
    assert "several labels for an image (task=multilabel); give checkpoint=RUN in place of a backbone" in line


def test_classes_of_the_file(tmp_path: Path, here: Callable[..., None], folder: Path) -> None:
    """Of a file of export, which names its classes: those of the data may be fewer, and in another order."""
    here(
        "train",
        "data=imagefolder",
        f"data.root={folder}",
        "data.image_size=32",
        "debug=fast",
        "hydra.run.dir=run",
    )
    here("export", "checkpoint=run", "format=torch_export", "out=net.pt2")
    for picture in (folder / "dog").iterdir():
        picture.unlink()
    (folder / "dog").rmdir()
    weights = {
        "weights": "net.pt2.safetensors",
        "_target_": "imgcls.backbones.simple_cnn.simple_cnn",
        "width": 32,
    }
    data = {"_target_": "imgcls.data.imagefolder.ImageFolder", "root": str(folder)}
    task = load_chosen(Chosen(checkpoint=None, trust=[], backbone=weights, data=data)).task
    assert tuple(task.spec.class_names) == ("cat", "dog", "fox") and task.spec.image_size == 32
    other = load_chosen(Chosen(checkpoint="run", trust=[], backbone={}, data=None)).task
    ours = task.network.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in other.network.named_parameters())
    with pytest.raises(UserError, match="depth"):
        load_chosen(Chosen(checkpoint=None, trust=[], backbone=weights | {"depth": 3}, data=data))
