"""Low-rank adapters: where they are, that they change nothing at first, and nothing when they are merged."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.command import ROOT, imgcls
from support.runs import SHORT, assert_same_run
from torch import nn

from imgcls.backbones.build import build_network, rebuild_network
from imgcls.backbones.layers import head_names
from imgcls.backbones.lora import MARK, merged
from imgcls.data.digits import Digits
from imgcls.engine.signals import STOPPED
from imgcls.errors import UserError
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.task import load_checkpoint

TIMM = "imgcls.backbones.timm.timm_network"
TORCHVISION = "imgcls.backbones.torchvision.torchvision_network"
CNN = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
BLOCK = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
LORA = ["finetune=lora", "backbone.width=4", "backbone.lora.r=2"]


def adapted(network: nn.Module) -> set[str]:
    return {name.partition(f".{MARK}")[0] for name, _ in network.named_parameters() if MARK in name}


def randomised(network: nn.Module) -> nn.Module:
    """Fills adapters and heads, which begin at zero, and statistics, so that each counts in the logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if f"{MARK}B" in name or name.startswith(head_names(network)):
                nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("use", [{}, {"use_dora": True, "use_rslora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize(
    ("node", "size", "layers"),
    [
        (CNN, 8, 6),
        ({"_target_": "imgcls.backbones.resnet_cifar.resnet_cifar", "depth": 8}, 32, 7),
        ({"_target_": TIMM, "name": "test_vit"}, 32, 4 * 6),
        ({"_target_": TIMM, "name": "test_convnext2"}, 32, 8),
        ({"_target_": TIMM, "name": "test_efficientnet_ln"}, 32, 15),
        ({"_target_": TORCHVISION, "name": "squeezenet1_1"}, 64, 25),
    ],
    ids=lambda value: value.get("name", "own") if isinstance(value, dict) else "",
)
def test_families(node: dict[str, Any], size: int, layers: int, use: dict[str, Any]) -> None:
    lora = {"r": 2, "lora_alpha": 4, **use}
    torch.manual_seed(0)
    plain = build_network(node, 3, 3, size)
    torch.manual_seed(0)
    network = build_network({**node, "lora": lora}, 3, 3, size)
    images = torch.randn(2, 3, size, size)
    torch.testing.assert_close(network.eval()(images), plain.eval()(images))
    found = adapted(network)
    assert len(found) == layers and not any(name.startswith(head_names(network)) for name in found)
    if "vit" in node.get("name", ""):
        assert {".".join(name.split(".")[2:]) for name in found} == BLOCK
    with torch.no_grad():
        expected = randomised(network)(images)
        alone = merged(network)
        assert not torch.allclose(expected, plain(images), atol=1e-3)
        torch.testing.assert_close(alone(images), expected, atol=1e-4, rtol=1e-4)
    assert list(alone.state_dict()) == list(plain.state_dict()) and adapted(network) == found
    again = rebuild_network({**node, "lora": lora}, 3, 3, size)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images), expected)


def test_layers_that_a_network_does_not_call_are_left(caplog: pytest.LogCaptureFixture) -> None:
    """torchvision's transformers read the weights of their attention: an adapter would be ignored."""
    swin = {"_target_": TORCHVISION, "name": "swin_t", "lora": {}}
    with caplog.at_level("WARNING"):
        network = build_network(swin, 3, 3, 64)
    assert "no adapters beside 24 linear layers, whose weights the network reads itself: " in caplog.text
    assert {name.rpartition(".mlp.")[2] for name in adapted(network)} == {
        "0", "3", "features.2.reduction", "features.4.reduction", "features.6.reduction",
    }  # fmt: skip
    with pytest.raises(UserError, match="'qkv': features.1.0.attn.qkv is the head, or a Linear; expected"):
        build_network({**swin, "lora": {"target_modules": ["qkv"]}}, 3, 3, 64)


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ({"target_modules": ["qkv"]}, "'qkv': no such layer"),
        ({"target_modules": ["head"]}, "'head': head is the head, or a Linear"),
        ({"target_modules": ["features.1"]}, "or a BatchNorm2d; expected Linear or Conv2d"),
        ({"target_modules": []}, "target_modules=.*at least 1"),
        ({"r": 0}, "backbone.lora.r=0: .*greater than or equal to 1"),
        ({"lora_dropout": 1.0}, "backbone.lora.lora_dropout=1.0"),
        ({"init_lora_weights": "pissa"}, "backbone.lora.init_lora_weights=pissa: extra inputs"),
    ],
)
@pytest.mark.parametrize("build", [build_network, rebuild_network])
def test_what_does_not_fit(build: Callable[..., nn.Module], lora: dict[str, Any], expected: str) -> None:
    """In a user's config, and in a checkpoint, whose settings no code of peft sees before."""
    with pytest.raises(UserError, match=expected):
        build({**CNN, "lora": lora}, 3, 3, 8)


def test_adapters_without_their_callback(said: Callable[..., str]) -> None:
    """All weights would learn beside them."""
    advice = "write finetune=lora, or leave backbone.lora out"
    for finetune in ("none", "staged"):
        assert advice in said("train", f"finetune={finetune}", "+backbone.lora.r=2")
    assert advice in said("train", *LORA, "callbacks.finetune.only=biases")


def test_dora_in_a_task() -> None:
    """Whose convolutions have channels last, which peft's views of matrices do not expect."""
    task = ImageClassifier(vars(Digits().spec), {**CNN, "lora": {"use_dora": True}})
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    task(images).sum().backward()
    randomised(task.network)
    with torch.no_grad():
        expected = task(images)
        task.network = merged(task.network)
        torch.testing.assert_close(task(images), expected, atol=1e-4, rtol=1e-4)


def test_chosen_layers_alone() -> None:
    network = build_network({**CNN, "lora": {"target_modules": ["features.0", "features.17"]}}, 3, 3, 8)
    assert adapted(network) == {"features.0", "features.17"}


def test_without_peft(monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]) -> None:
    """A line, before data and network are made; without finetune=lora nothing imports it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the package peft, which is not installed; in the clone: pip install" in said("train", *LORA)


def test_peft_is_imported_where_it_is_used_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It brings transformers along, and takes seconds."""
    monkeypatch.setitem(sys.modules, "peft", None)
    network = build_network(CNN, 3, 3, 8)
    assert merged(network) is network
    lines = [line for file in (ROOT / "src").rglob("*.py") for line in file.read_text().splitlines()]
    assert not [line for line in lines if line.startswith(("import peft", "from peft"))]


def test_a_run(
    train: Callable[..., Any],
    here: Callable[..., None],
    said: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trains adapters and head alone, goes on bit for bit, is evaluated and exported as the plain network."""
    # test_report.py draws; here it would be most of the time
    monkeypatch.setattr("imgcls.report.classification.ClassificationReport.draw", lambda *_: None)
    given = [*SHORT, *LORA, "backbone.lora.lora_dropout=0.1", "trainer.limit_train_batches=4"]
    torch.manual_seed(1)
    torch.save(build_network(CNN, 10, 1, 8).state_dict(), "start.pth")
    given += ["backbone.weights=start.pth", "trainer.max_epochs=2"]
    assert train(*given, "hydra.run.dir=whole") is None
    assert train(*given, "hydra.run.dir=cut", stop=5) == STOPPED
    assert train("resume=cut") is None
    assert_same_run(Path("whole"), Path("cut"))
    start = torch.load("start.pth", weights_only=True)
    Path("start.pth").unlink()
    state = load_checkpoint(Path("whole/checkpoints/last.ckpt"))[0].network.state_dict()
    base = {name.replace(".base_layer", ""): value for name, value in state.items() if MARK not in name}
    changed = {name for name, value in base.items() if not torch.equal(value, start[name])}
    assert changed == {"head.weight", "head.bias"}  # no statistics
    assert all(value.any() for name, value in state.items() if f"{MARK}B" in name)
    here("eval", "checkpoint=whole", "hydra.run.dir=again")
    assert Path("again/metrics.json").read_text() == Path("whole/test/metrics.json").read_text()
    here("export", "checkpoint=whole", "format=torch_export", "out=net.pt2")
    exported = load_file("net.pt2.safetensors")
    assert exported.keys() == start.keys()
    assert not torch.equal(exported["features.0.weight"], start["features.0.weight"])
    assert "imgcls export merges them" in said("train", *SHORT, "backbone.width=4", "backbone.weights=whole")
    build_network({**CNN, "weights": "net.pt2.safetensors"}, 10, 1, 8, whole=True)


@pytest.mark.slow
def test_two_processes_and_ema() -> None:
    done = imgcls(
        "train", *LORA, "trainer=ddp_cpu", "trainer.max_epochs=2", "trainer.limit_train_batches=3",
        "logger=csv", "callbacks=ema", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "parameters learn" in done.stdout
    state = load_checkpoint(Path("run/checkpoints/last.ckpt"))[0].network.state_dict()
    assert all(value.any() for name, value in state.items() if f"{MARK}B" in name)
