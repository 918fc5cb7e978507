"""What images weights expect: found with the weights, and taken where the data's config says null."""

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as models
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from support.composed import composed

from imgcls.backbones.preprocessing import note_difference, of_weights, prepared_for
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.errors import UserError
from imgcls.spec import DataSpec

TIMM = {"_target_": "imgcls.backbones.timm.timm_network"}
VISION = {"_target_": "imgcls.backbones.torchvision.torchvision_network"}
OURS = {"_target_": "imgcls.backbones.resnet_cifar.resnet_cifar", "depth": 8}
SPEC = DataSpec(("cat", "dog"), 3, 48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.8, "squash")
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_ratio": 0.95, "fit": "crop", "image_size": 160}


def test_the_librarys_weights() -> None:
    found = of_weights(TIMM | {"name": "test_resnet", "pretrained": True})
    assert found is not None and found.origin == "timm's test_resnet.r160_in1k" and found.classes == 1000
    assert found.fields == HALF | {"interpolation": "bilinear"}
    found = of_weights(VISION | {"name": "efficientnet_b4", "pretrained": True})
    assert found is not None and found.origin == "torchvision's efficientnet_b4, IMAGENET1K_V1"
    assert (found.fields["interpolation"], found.fields["image_size"]) == ("bicubic", 380)
    direct = {"_target_": "torchvision.models.resnet50", "pretrained": True}
    found = of_weights(direct)
    assert found is not None and found.fields["crop_ratio"] == 224 / 232


def test_larger_images_in_a_test() -> None:
    backbone = TIMM | {"name": "resnet10t", "pretrained": True}
    sizes = {of_weights(backbone, testing).fields["image_size"] for testing in (False, True)}  # type: ignore[union-attr]
    assert sizes == {176, 224}


def test_a_file_of_weights_that_a_name_says(tmp_path: Path) -> None:
    """A tag in the name says whose weights the file has; a name alone does not."""
    file = {"weights": str(tmp_path / "net.pth")}
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pth")
    tagged = of_weights(TIMM | {"name": "tf_efficientnet_lite0.in1k"} | file)
    assert tagged is not None and tagged.fields["mean"] == (0.5, 0.5, 0.5)
    for backbone in (TIMM | {"name": "tf_efficientnet_lite0"}, VISION | {"name": "resnet18"}, OURS):
        assert of_weights({**backbone, **file}) is None
    assert of_weights(OURS) is None


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_checkpoint_and_an_export(suffix: str, tmp_path: Path) -> None:
    path, facts = tmp_path / f"net{suffix}", asdict(SPEC)
    if suffix == ".ckpt":
        torch.save({"state_dict": {}, "hyper_parameters": {"spec": facts}}, path)
    else:
        save_file({"a": torch.zeros(1)}, path, {key: json.dumps(value) for key, value in facts.items()})
    found = of_weights(OURS | {"weights": str(path)})
    assert found is not None and found.origin == str(path) and found.classes == 2
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in found.fields.items()} == {
        "mean": SPEC.mean, "std": SPEC.std, "interpolation": "bicubic", "crop_ratio": 0.8, "fit": "squash",
        "image_size": 48,
    }  # fmt: skip


def test_weights_beside_a_config_of_timms(tmp_path: Path) -> None:
    config: dict[str, Any] = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 64, 64], "crop_pct": 0.9}
    config |= {"interpolation": "bicubic", "crop_mode": "border"}
    text = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": config}
    (tmp_path / "config.json").write_text(json.dumps(text))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = of_weights(TIMM | {"name": "test_resnet", "weights": str(tmp_path / "model.safetensors")})
    assert found is not None and found.classes == 7
    assert (found.fields["fit"], found.fields["image_size"], found.fields["mean"]) == ("pad", 64, (0.1,) * 3)


def test_a_test_size_beside_weights(tmp_path: Path) -> None:
    """A folder says larger images for a test as the library does; and numbers that another file leaves out,
    such as that of a network of transformers, are not filled in with timm's."""
    config: dict[str, Any] = {"mean": [0.1], "std": [0.2] * 3, "input_size": [3, 64, 64]}
    config["test_input_size"] = [3, 96, 96]
    backbone = {"_target_": TIMM["_target_"], "name": "net", "weights": str(tmp_path / "model.safetensors")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = [of_weights(backbone, testing) for testing in (False, True)]
    assert [one.fields["image_size"] for one in found if one] == [64, 96]
    assert found[0] is not None and found[0].fields["mean"] == (0.1,) * 3
    del config["mean"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(UserError, match=r"no config.json of timm's \(it has no mean\)"):
        of_weights(backbone)


CALL = {"_target_": "os.mkdir", "_args_": ["made"]}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".json"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": CALL}, {"mean": "abc"}, {"mean": ["a", "b", "c"]}, {"image_size": 10**9}, {"std": [0.0] * 3},
        {"mean": [math.nan] * 3}, {"interpolation": ["bilinear"]}, {"image_size": ""},
    ],
)  # fmt: skip
def test_images_that_can_not_be(wrong: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    """What a file says is no part of a config before it has the types of a spec: no call in it is made."""
    facts, path = asdict(SPEC) | wrong, tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": {}, "hyper_parameters": {"spec": facts}}, path)
    elif suffix == ".safetensors":
        save_file({"a": torch.zeros(1)}, path, {key: json.dumps(value) for key, value in facts.items()})
    else:
        size = wrong.get("image_size", 48)
        text = json.dumps(facts | {"input_size": [3, size, size]})
        (tmp_path / "config.json").write_text(text)
        path = tmp_path / "model.safetensors"
    data = {"_target_": "imgcls.data.imagefolder.ImageFolder", "root": "x"}
    with pytest.raises(UserError, match="says images that can't be|is no config.json of timm's") as error:
        prepared_for(OURS | {"weights": str(path)}, data)
    assert "\n" not in str(error.value) and not Path("made").exists()


def test_other_words_for_a_network() -> None:
    """The library's functions by their own names; weights that timm does not have; an oblong."""
    direct = of_weights({"_target_": "timm.models.resnet.resnet18", "pretrained": True})
    assert direct is not None and direct.origin == "timm's resnet18.a1_in1k"
    named = {"_target_": "timm.create_model", "model_name": "tf_efficientnet_lite0", "pretrained": True}
    changed = of_weights(named | {"pretrained_cfg_overlay": {"mean": (0.1,) * 3}})
    assert changed is not None and changed.fields["mean"] == (0.1,) * 3
    assert of_weights(TIMM | {"name": "resnet18.none", "pretrained": True}) is None
    oblong = of_weights(TIMM | {"name": "vit_base_patch16_sapiens2.fb", "pretrained": True})
    assert oblong is not None and oblong.fields["image_size"] == (1024, 768)


def test_a_mean_that_is_no_number_is_left_to_the_data() -> None:
    data = {"_target_": "imgcls.data.imagefolder.ImageFolder", "root": "x", "mean": ["a", "b", "c"]}
    assert prepared_for(TIMM | {"name": "test_resnet", "pretrained": True}, data)["mean"] == ["a", "b", "c"]


def test_what_is_null_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    data = composed("data=imagefolder", "data.root=x", "data.crop_ratio=0.8")["data"]
    with caplog.at_level(logging.INFO):
        found = prepared_for(TIMM | {"name": "test_resnet", "pretrained": True}, data)
    assert found == data | {
        "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "fit": "crop", "image_size": 160
    }  # fmt: skip
    (line,) = caplog.messages
    assert line == (
        "preprocessing: mean [0.5,0.5,0.5], std [0.5,0.5,0.5], interpolation bilinear, fit crop, "
        "image_size 160, as the weights expect (timm's test_resnet.r160_in1k); "
        "data.crop_ratio=0.8 is given (the weights: 0.95)"
    )


def test_small_images_keep_their_size(caplog: pytest.LogCaptureFixture) -> None:
    data = composed("data=cifar10")["data"]
    with caplog.at_level(logging.INFO):
        found = prepared_for(TIMM | {"name": "test_resnet", "pretrained": True}, data)
    assert found == data | {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert "data.image_size=32 is given (the weights: 160)" in caplog.text
    with caplog.at_level(logging.INFO):  # a pack has a size that only its files say
        prepared_for(
            TIMM | {"name": "test_resnet", "pretrained": True}, composed("data=packed", "data.root=x")["data"]
        )
    assert caplog.messages[-1].endswith("; image_size is the data's (the weights: 160)")


@pytest.mark.parametrize(
    "backbone",
    [
        TIMM | {"name": "test_resnet", "pretrained": True, "preprocessing": "data"},
        TIMM | {"name": "test_resnet", "pretrained": False}, OURS,
    ],
)  # fmt: skip
def test_nothing_to_take(backbone: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    data = composed("data=imagefolder", "data.root=x")["data"]
    with caplog.at_level(logging.INFO):
        assert prepared_for(backbone, data) == data
    assert not caplog.messages


def test_a_file_of_unknown_origin_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pth")
    backbone = TIMM | {"name": "test_resnet", "weights": str(tmp_path / "net.pth")}
    note_difference(backbone, SPEC)
    assert (
        "net.pth does not say what images it expects; timm's test_resnet.r160_in1k expects others"
        in caplog.text
    )
    assert "data.mean=[0.5,0.5,0.5]" in caplog.text and "data.image_size=160" in caplog.text
    caplog.clear()
    note_difference(backbone | {"preprocessing": "data"}, SPEC)
    same = DataSpec(("cat", "dog"), 3, 160, [0.5], [0.5], "bilinear", 0.95)
    note_difference(backbone, same)
    assert not caplog.messages


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_b4", "inception_v3"])
def test_torchvisions_own_transform(name: str, folder: Path) -> None:
    """What torchvision's preset gives, but for rounding between two passes, as Pillow rounds, too."""
    node = prepared_for(
        VISION | {"name": name, "pretrained": True}, {"_target_": "imgcls.data.imagefolder.ImageFolder"}
    )
    spec = ImageFolder(root=str(folder), **{k: v for k, v in node.items() if k != "_target_"}).spec
    preset = models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    image = torch.tensor(load_sample_images().images[0][:300, :417]).permute(2, 0, 1)
    ours = (evaluation_transform(spec)(image) / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(
        spec.std
    ).view(3, 1, 1)
    assert (ours - preset(image)).abs().mean() < 0.01 < 0.1 < (ours - ours.mean()).abs().mean()


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("height", "width"), [(30, 90), (90, 30), (40, 40)])
def test_the_whole_picture(fit: Any, height: int, width: int) -> None:
    """A white picture: padding alone makes black, and squashing and padding lose no part of it."""
    spec = DataSpec(("a", "b"), 3, 24, [0.5], [0.5], fit=fit)
    white = torch.full((3, height, width), 255, dtype=torch.uint8)
    marked = white.clone()
    marked[:, 0, 0] = 0
    shown, share = evaluation_transform(spec)(white), min(height, width) / max(height, width)
    assert shown.shape == (3, 24, 24)
    assert (shown == 255).float().mean() == pytest.approx(share if fit == "pad" else 1.0, abs=0.05)
    seen = not torch.equal(evaluation_transform(spec)(marked), shown)
    assert seen == (fit != "crop" or height == width)
