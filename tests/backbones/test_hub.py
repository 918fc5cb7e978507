"""Networks of a repository or a folder with timm's config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from imgcls.backbones import hub
from imgcls.backbones.build import build_network
from imgcls.backbones.hub import resolved
from imgcls.errors import UserError

TIMM = "imgcls.backbones.timm.timm_network"


def write(folder: Path) -> dict[str, torch.Tensor]:
    """Writes what `save_for_hf` of timm writes; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10, in_chans=3)
    arguments = {"num_classes": 10, "in_chans": 3, "global_pool": "max"}
    pretrained = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64], "crop_pct": 0.9}
    config = {"architecture": "test_resnet", "num_classes": 10, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": pretrained}))
    save_file(network.state_dict(), folder / "model.safetensors")
    return dict(network.state_dict())


def test_a_folder(tmp_path: Path) -> None:
    state = write(tmp_path)
    backbone = {"_target_": TIMM, "name": f"local-dir:{tmp_path}", "pretrained": True, "weights": None}
    found = resolved(backbone)
    weights = str(tmp_path / "model.safetensors")
    assert found == backbone | {
        "name": "test_resnet", "pretrained": False, "weights": weights, "global_pool": "max"
    }  # fmt: skip
    network = build_network(found, 10, 3, 64)
    assert network.get_submodule("global_pool").pool_type == "max"
    assert all(torch.equal(value, state[key]) for key, value in network.named_parameters())
    without = resolved(backbone | {"pretrained": False})
    assert without["weights"] is None and without["name"] == "test_resnet"


def test_a_repository_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, str | None, list[str]]]()

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        write(tmp_path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    backbone = {"_target_": TIMM, "name": "hf-hub:me/net@v1", "pretrained": True}
    assert resolved(backbone)["weights"] == str(tmp_path / "model.safetensors")
    resolved(backbone | {"name": "hf-hub:me/net", "pretrained": False})
    assert asked == [("me/net", "v1", ["config.json", *hub.WEIGHTS]), ("me/net", None, ["config.json"])]


@pytest.mark.parametrize(
    "options",
    [
        {"act_layer": {"_target_": "os.mkdir", "_args_": ["made"]}}, {"_args_": ["resnet18"]}, [1],
        {"preprocessing": "data"}, {"rename": {"a": "b"}}, {"blocks": [{"_target_": "os.getcwd"}]},
    ],
)  # fmt: skip
def test_a_file_makes_no_calls(options: Any, tmp_path: Path) -> None:
    """A config.json from elsewhere says options of a network, and nothing that is the user's to say."""
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": options}))
    with pytest.raises(UserError, match="its model_args (have .*nothing was called|are list, no object)"):
        build_network(resolved({"_target_": TIMM, "name": f"local-dir:{tmp_path}"}), 10, 3, 64)
    assert not Path("made").exists()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", "[" * 100_000])
def test_folders_that_are_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=r"backbone.name=local-dir:.*; expected a config.json with an architect"
    ):
        resolved({"_target_": TIMM, "name": f"local-dir:{tmp_path}"})


def test_a_folder_without_weights(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="there is no model.safetensors or pytorch_model.bin in"):
        resolved({"_target_": TIMM, "name": f"local-dir:{tmp_path}", "pretrained": True})


def test_a_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first words after the name are the cause, and none is cut."""

    def snapshot(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("a long story") from ConnectionError("Connection refused")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(UserError) as refused:
        resolved({"_target_": TIMM, "name": "hf-hub:me/net"})
    assert str(refused.value) == (
        "backbone.name=hf-hub:me/net: the hub can't be reached, and there is no copy here "
        "(Connection refused); connect, or give the folder of a copy as backbone.name=local-dir:FOLDER"
    )


def test_other_networks_stay_as_they_are() -> None:
    for backbone in ({"_target_": TIMM, "name": "resnet18"}, {"_target_": "my.net", "name": "local-dir:x"}):
        assert resolved(backbone) == backbone
