"""Rectangles, another size in training, and another size than trained, through the command line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import RGB, write_checkpoint
from support.pictures import write_picture
from torch import Tensor

import imgcls
from imgcls.commands.evaluated import set_tta
from imgcls.runs.checkpoints import load_content
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.task import Task

Here = Callable[..., None]
SMALL = ["data.num_workers=0", "data.batch_size=6", "logger=csv", "trainer=cpu", "trainer.max_epochs=1"]
VIT = ["backbone=timm", "backbone.name=vit_tiny_patch16_224", "+backbone.depth=1", "+backbone.embed_dim=12"]
VIT += ["+backbone.num_heads=2"]
CONVIT = ["backbone=timm", "backbone.name=convit_tiny", "+backbone.depth=2"]
SQUARES = ["backbone._target_=support.networks.squares_alone", "~backbone.width", "~backbone.dropout"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[tuple[int, ...]]]:
    """The shapes that the network gets, in training and in evaluation."""
    shapes: dict[str, set[tuple[int, ...]]] = {"train": set(), "test": set()}
    run = ImageClassifier.run

    def noted(self: ImageClassifier, inputs: Tensor) -> tuple[Tensor, ...]:
        shapes["train" if self.training else "test"].add(tuple(inputs.shape[1:]))
        return run(self, inputs)

    monkeypatch.setattr(ImageClassifier, "run", noted)
    return shapes


def test_a_rectangle_from_training_to_export(folder: Path, here: Here, seen: dict[str, Any]) -> None:
    given = ["data=imagefolder", f"data.root={folder}", "data.image_size=[24,40]", "data.fit=pad", *SMALL]
    more = ["data.train_size=[16,32]", "augment=randaugment", "augment.erase=0.5", "backbone.width=4"]
    more += ["augment.mixup.probability=0.5", "augment.cutmix.probability=0.5", "augment.crop=resized"]
    here("train", *given, *more, "hydra.run.dir=run")
    assert seen == {"train": {(3, 16, 32)}, "test": {(3, 24, 40)}}
    spec = load_content(Path("run/checkpoints/best.ckpt"))["hyper_parameters"]["spec"]
    assert (spec["image_size"], spec["train_size"]) == ((24, 40), (16, 32))
    before = json.loads(Path("run/test/metrics.json").read_text())
    here("eval", "checkpoint=run", "hydra.run.dir=again")
    assert json.loads(Path("again/metrics.json").read_text()) == before
    assert Path("run/test/mistakes.png").exists() == Path("again/mistakes.png").exists()
    here("predict", "checkpoint=run", f"source={folder}/cat", "out=p.jsonl", "num_workers=0")
    first = json.loads(Path("p.jsonl").read_text().splitlines()[0])
    model = imgcls.load("run", device="cpu")
    found = model.predict(folder / "cat" / "00.jpg")
    assert model.prepared(folder / "cat" / "00.jpg").shape == (3, 24, 40)
    assert found.probabilities == pytest.approx(first["probabilities"], abs=1e-4)
    assert seen["test"] == {(3, 24, 40)}
    here("export", "checkpoint=run", "out=net.pt2", "format=torch_export")
    facts: dict[str, Any] = {"metadata.json": ""}
    program = torch.export.load("net.pt2", extra_files=facts).module()
    kept = {name: json.loads(text) for name, text in json.loads(facts["metadata.json"]).items()}
    assert (kept["image_size"], kept["resize"], kept["fit"]) == ([24, 40], [27, 45], "pad")
    images = torch.randint(0, 256, (3, 3, 24, 40), dtype=torch.uint8)
    torch.testing.assert_close(program(images), model.task(images), atol=1e-4, rtol=1e-4)


def test_a_set_in_memory_and_sizes_that_grow(here: Here, seen: dict[str, Any]) -> None:
    sized = [
        "data.image_size=[16,32]",
        "data.fit=squash",
        "callbacks=progressive_resizing",
        "augment=standard",
    ]
    sized += ["callbacks.progressive_resizing.multiple=4", "trainer.max_epochs=2"]
    here("train", *SMALL[:-1], *sized, "debug=fast", "hydra.run.dir=run")
    assert seen["train"] == {(1, 8, 16), (1, 12, 24)} and seen["test"] == {(1, 16, 32)}
    here("export", "checkpoint=run", "out=net.pt2", "format=torch_export")  # of the network's size
    program = torch.export.load("net.pt2").module()
    assert program(torch.zeros(2, 1, 16, 32, dtype=torch.uint8)).shape == (2, 10)


def test_a_smaller_size_in_training(here: Here, seen: dict[str, Any]) -> None:
    sized = ["data.image_size=16", "data.train_size=12", "backbone.width=4"]
    here("train", *SMALL, *sized, "debug=fast", "hydra.run.dir=run")
    assert seen == {"train": {(1, 12, 12)}, "test": {(1, 16, 16)}}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.image_size=[8,16]"], "data.image_size=[8,16] stretches images of 8×8 pixels; expected their"),
        (["data.train_size=[8,16]"], "data.train_size=[8,16] stretches images of 8×8 pixels; expected their"),
        ([*VIT, "data.image_size=32", "data.train_size=16"], "data.train_size=16: expected a network"),
        (
            ["backbone=torchvision", "backbone.name=vit_b_32", "data.image_size=[32,64]", "data.fit=squash"],
            "torchvision's vit_b_32 takes squares; timm's vision transformers take any",
        ),
        (
            ["backbone=inception_v3", "data.channels=3", "data.image_size=[75,60]", "data.fit=squash"],
            "images of 3×75×60 do not fit this network",
        ),
        (
            [*SQUARES, "data.image_size=[8,16]", "data.fit=squash"],
            "data.image_size=[8,16]: this backbone takes squares (image_size: int); give one number",
        ),
    ],
    ids=["stretched", "stretched in training", "one size", "torchvision", "too small", "int"],
)
def test_what_a_rectangle_can_not_be(said: Callable[..., str], words: list[str], expected: str) -> None:
    assert expected in said("train", *words, "trainer=cpu", "logger=csv")


def test_a_vision_transformer_of_any_size_in_training(here: Here, seen: dict[str, Any]) -> None:
    sized = [*VIT, "+backbone.dynamic_img_size=true", "data.image_size=[32,64]", "data.fit=squash"]
    here("train", *SMALL, *sized, "data.train_size=[16,32]", "debug=fast", "hydra.run.dir=run")
    assert seen == {"train": {(1, 16, 32)}, "test": {(1, 32, 64)}}


# Another size than trained


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in RGB.class_names:
        for i in range(3):
            write_picture(tmp_path / "pictures" / "train" / name / f"{i}.png", seed=i)
            write_picture(tmp_path / "pictures" / "test" / name / f"{i}.png", seed=10 + i)
    return tmp_path / "pictures"


def test_eval_at_another_size(pictures: Path, here: Here, seen: dict[str, Any]) -> None:
    """Positions are interpolated as timm does it; the ratio of the crop stays."""
    data = ["data=imagefolder", f"data.root={pictures}", "data.num_workers=0"]
    write_checkpoint(Path("net.ckpt"), RGB, *data, *VIT)
    here("eval", "checkpoint=net.ckpt", "data.image_size=[48,64]", "hydra.run.dir=larger")
    assert seen["test"] == {(3, 48, 64)}
    assert json.loads(Path("larger/metrics.json").read_text())["image_size"] == [48, 64]
    assert "image size (48, 64)" in Path("larger/index.html").read_text()
    here("predict", "checkpoint=net.ckpt", f"source={pictures}/test", "data.image_size=64", "out=p.jsonl")
    assert (3, 64, 64) in seen["test"]
    here("export", "checkpoint=net.ckpt", "data.image_size=64", "out=net.pt2", "format=torch_export")
    task = ImageClassifier.load_from_checkpoint("net.ckpt")
    task.network.set_input_size(img_size=(64, 64))  # type: ignore[operator]
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = torch.export.load("net.pt2").module()(images)
    task.spec = DataSpec(**{**vars(task.spec), "image_size": 64})
    torch.testing.assert_close(found, task(images), atol=1e-4, rtol=1e-4)


def test_a_data_set_of_another_size_changes_nothing(here: Here, seen: dict[str, Any]) -> None:
    names = tuple(map(str, ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
    spec = DataSpec(names, 1, 12, (0.3,), (0.3,), mirror=False)
    write_checkpoint(Path("net.ckpt"), spec, "data=digits", "data.image_size=12", "backbone.width=4")
    here("eval", "checkpoint=net.ckpt", "data=digits", "hydra.run.dir=run")
    assert seen["test"] == {(1, 12, 12)} and "image_size" not in json.loads(
        Path("run/metrics.json").read_text()
    )


@pytest.mark.parametrize(
    ("backbone", "size", "expected"),
    [
        (CONVIT, "64", "images of 3×64×64 do not fit this network"),
        (
            ["backbone=timm", "backbone.name=vit_tiny_patch16_224"],
            "[48,40]",
            "images of 3×48×40 do not fit this network (its patches of 16×16 would leave an edge out: take",
        ),
        (["backbone.width=4"], "[8]", "data.image_size=[8]: expected 1 pixel or more, or [height,width]"),
    ],
    ids=["another", "patches", "none"],
)
def test_a_size_that_the_network_can_not_take(
    said: Callable[..., str], backbone: list[str], size: str, expected: str
) -> None:
    write_checkpoint(Path("net.ckpt"), RGB, "data=digits", *backbone)
    assert expected in said("eval", "checkpoint=net.ckpt", f"data.image_size={size}")


# Test-time augmentation


class Named(torch.nn.Module):
    """A network whose logits are known: the sums of the left and of the right half, and of the top row."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        parts = images[..., :half], images[..., half:], images[..., :1, :]
        return torch.stack([part.mean((1, 2, 3)) for part in parts], 1)


def small(tta: Any) -> ImageClassifier:
    facts = {"class_names": ("a", "b", "c"), "channels": 1, "image_size": 8, "mean": [0.0], "std": [1 / 255]}
    backbone = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 2}
    task = ImageClassifier(facts, backbone, {"_target_": "torch.nn.CrossEntropyLoss"}).eval()
    task.network, task.tta, task.spec = Named(), tta, replace(task.spec, image_size=2)
    return task


def test_the_mean_over_views_by_hand() -> None:
    """Of the image [[1, 3], [0, 2]]: left 0.5, right 2.5, top 2; mirrored the first two change places."""
    image = torch.tensor([[[[1, 3], [0, 2]]]], dtype=torch.uint8)
    plain, mirrored = (torch.tensor([v]).softmax(1) for v in ([0.5, 2.5, 2.0], [2.5, 0.5, 2.0]))
    batch = imgcls.Batch(image, torch.tensor([2]), torch.tensor([0]), torch.tensor([True]))
    task = small("flip")
    outputs = means(task, batch)
    expected = (plain + mirrored) / 2  # of the probabilities
    torch.testing.assert_close(outputs.logits.softmax(1), expected)
    torch.testing.assert_close(outputs.loss, -expected[0, 2].log())
    answers = task.answers(image)
    torch.testing.assert_close(answers.numbers[0], expected[0].sort(descending=True).values)
    crops = torch.stack([image, image.flip(-2)], 1)  # two crops, of which the second has the top row [0, 2]
    below = torch.tensor([[0.5, 2.5, 1.0]]).softmax(1)
    task.tta = "five"
    found = means(task, batch._replace(images=crops)).logits.softmax(1)
    torch.testing.assert_close(found, (plain + below) / 2)
    task.tta = "ten"
    turned = torch.tensor([[2.5, 0.5, 1.0]]).softmax(1)
    found = means(task, batch._replace(images=crops)).logits.softmax(1)
    torch.testing.assert_close(found, (plain + mirrored + below + turned) / 4)


def means(task: Task, batch: imgcls.Batch) -> imgcls.Outputs:
    """What a test makes of a batch, without a trainer."""
    views = task.views_of(batch.images)
    outputs = [task.compute(batch._replace(images=view), "test") for view in views]
    return task.averaged(outputs, batch.targets)


@pytest.mark.parametrize("tta", ["flip", "five", "ten"])
def test_tta_through_the_command_line(pictures: Path, here: Here, tta: str) -> None:
    """Metrics are those of the mean of what single views give, and predict says the same."""
    data = ["data=imagefolder", f"data.root={pictures}", "data.num_workers=0"]
    write_checkpoint(Path("net.ckpt"), RGB, *data, "backbone.width=4")
    here("eval", "checkpoint=net.ckpt", f"tta={tta}", "hydra.run.dir=run")
    here("eval", "checkpoint=net.ckpt", "hydra.run.dir=plain")
    measured, plain = (json.loads(Path(run, "metrics.json").read_text()) for run in ("run", "plain"))
    assert measured["tta"] == tta and f"tta {tta}" in Path("run/index.html").read_text()
    assert "tta" not in plain and plain["test/loss"] != measured["test/loss"]
    source = [f"source={pictures}/test", "num_workers=0", "overwrite=true", "top_k=3"]
    here("predict", "checkpoint=net.ckpt", f"tta={tta}", "out=p.jsonl", "embedding=true", *source)
    here("predict", "checkpoint=net.ckpt", "out=plain.jsonl", "embedding=true", *source)
    lines = (Path(f"{name}.jsonl").read_text().splitlines() for name in ("p", "plain"))
    rows, others = (list(map(json.loads, file)) for file in lines)
    right = [row["labels"].index(Path(row["path"]).parent.name) for row in rows]
    loss = -torch.tensor([row["probabilities"][i] for row, i in zip(rows, right, strict=True)]).log().mean()
    assert loss.item() == pytest.approx(measured["test/loss"], rel=1e-4)
    assert [row["embedding"] for row in rows] == [row["embedding"] for row in others]  # of the image as it is


@pytest.mark.parametrize(
    ("tta", "changed", "expected"),
    [
        ("flip", {"mirror": False}, "tta=flip: a mirrored image may be of another class (data.mirror=false)"),
        ("ten", {"mirror": False}, "tta=ten: a mirrored image may be of another class"),
        ("five", {"crop_ratio": 1.0, "fit": "squash"}, "with data.crop_ratio=1 leaves nothing"),
    ],
)
def test_views_that_make_no_sense(
    pictures: Path, said: Callable[..., str], tta: str, changed: dict[str, Any], expected: str
) -> None:
    spec = DataSpec(**{**vars(RGB), **changed})
    data = ["data=imagefolder", f"data.root={pictures}", "data.num_workers=0", "backbone.width=4"]
    write_checkpoint(Path("net.ckpt"), spec, *data)
    assert expected in said("eval", "checkpoint=net.ckpt", f"tta={tta}")
    assert expected in said("predict", "checkpoint=net.ckpt", f"source={pictures}", f"tta={tta}")


def test_crops_that_may_be_the_same_are_named(caplog: pytest.LogCaptureFixture) -> None:
    task = small(None)  # its crop_ratio is 1
    set_tta(task, "five")
    assert "tta=five: with data.crop_ratio=1 all crops of a square image are the same" in caplog.text


def test_a_set_in_memory_has_no_corners(said: Callable[..., str]) -> None:
    from imgcls.data.digits import Digits

    write_checkpoint(Path("net.ckpt"), Digits().spec, "data=digits", "backbone.width=4")
    expected = "tta=five: images of this data have nothing around the centre to crop; expected tta=flip"
    assert expected in said("eval", "checkpoint=net.ckpt", "tta=five")
