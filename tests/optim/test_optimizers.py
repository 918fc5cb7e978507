"""Every optimizer that is shipped: its groups, a step, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim import Optimizer

from imgcls.backbones.build import build_network
from imgcls.errors import UserError
from imgcls.optim import build_optimizer, with_rate

FILES = sorted((Path(__file__).parents[2] / "conf" / "optimizer").glob("*.yaml"))
CHOICES: dict[str, list[dict[str, Any]]] = {
    "torch": [{"_target_": f"torch.optim.{name}"} for name in ("NAdam", "RAdam", "RMSprop", "Adafactor")],
    "timm": [{"opt": name} for name in ("adan", "lookahead_radam", "nadamw", "muon", "lars")],
}
CPU = torch.device("cpu")


def shipped() -> list[Any]:
    cases = []
    for path in FILES:
        config = yaml.safe_load(path.read_text())
        config = {
            k: float(v) if k in ("lr", "eps", "weight_decay") else v
            for k, v in config.items()
            if k != "defaults"
        }  # Hydra's 1e-3
        for choice in CHOICES.get(path.stem, [{}]):
            cases.append(pytest.param(config | choice, id="-".join([path.stem, *map(str, choice.values())])))
    return cases


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(
        {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4},
        num_classes=3,
        in_channels=1,
        image_size=8,
    )


def build(config: dict[str, Any], net: nn.Module | None = None, fused: bool = True) -> Optimizer:
    return build_optimizer(config, network() if net is None else net, CPU, fused)


def decays(optimizer: Optimizer, net: nn.Module) -> dict[str, float]:
    """Returns the weight decay of each parameter by its name."""
    group_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(group_of)
    return {name: group_of[id(p)] for name, p in net.named_parameters()}


@pytest.mark.parametrize("config", shipped())
def test_shipped(config: dict[str, Any]) -> None:
    assert "???" not in config.values()
    net, decay = network(), config["weight_decay"] or 0.03
    optimizer = build(config | {"weight_decay": decay}, net)
    weights = {name: p for name, p in net.named_parameters() if p.ndim > 1}
    assert decays(optimizer, net) == {n: decay if n in weights else 0.0 for n, _ in net.named_parameters()}
    assert {group["lr"] for group in optimizer.param_groups} == {config["lr"]}
    images, targets = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        optimizer.step()
        assert all(not torch.equal(before[n], p) for n, p in net.named_parameters() if n in weights)
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]


@pytest.mark.parametrize("config", shipped())
def test_state_is_plain(config: dict[str, Any], tmp_path: Path) -> None:
    net = network()
    optimizer = build(config, net)
    net(torch.randn(4, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_embeddings_of_timm_are_exempt() -> None:
    net = build_network(
        {"_target_": "imgcls.backbones.timm.timm_network", "name": "test_vit"},
        num_classes=3,
        in_channels=3,
        image_size=32,
    )
    found = decays(build({"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.1}, net), net)
    embeddings = {"pos_embed", "cls_token"}
    assert embeddings <= found.keys()
    shapes = {name: p.ndim for name, p in net.named_parameters()}
    assert found == {name: 0.0 if name in embeddings or ndim < 2 else 0.1 for name, ndim in shapes.items()}


@pytest.mark.parametrize(
    ("name", "size", "embeddings"),
    [("vit_b_32", 32, ("class_token", "pos_embedding")), ("swin_t", 32, ("relative_position_bias_table",))],
)
def test_embeddings_of_torchvision_are_exempt(name: str, size: int, embeddings: tuple[str, ...]) -> None:
    with torch.device("meta"):
        net = build_network(
            {"_target_": "imgcls.backbones.torchvision.torchvision_network", "name": name},
            3,
            3,
            image_size=size,
        )
    found = decays(
        build({"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.1}, net, fused=False), net
    )
    assert {decay for name, decay in found.items() if name.endswith(embeddings)} == {0.0}


@pytest.mark.parametrize("target", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused(target: str) -> None:
    config = {"_target_": f"torch.optim.{target}", "lr": 0.1}
    assert build(config).defaults["fused"] is True
    assert not build(config, fused=False).defaults["fused"]
    assert build(config | {"fused": False}).defaults["fused"] is False
    assert not build_optimizer(config, network(), torch.device("xla"), fused=True).defaults["fused"]


@pytest.mark.parametrize("option", ["foreach", "capturable"])
def test_another_way_to_step_can_be_asked_for(option: str) -> None:
    assert build({"_target_": "torch.optim.AdamW", "lr": 0.1, option: True}).defaults[option] is True


def test_fused_is_the_same_step() -> None:
    results = []
    for fused in (True, False):
        net = network()
        optimizer = build({"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1}, net, fused)
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, 1, 8, 8)).square().mean().backward()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", [{"_target_": "timm.optim.Muon"}, {"_target_": "timm.optim.create_optimizer_v2", "opt": "muon"}]
)
def test_muon_leaves_the_head_to_adamw(config: dict[str, Any]) -> None:
    net = network()
    optimizer = build(config | {"lr": 1e-3, "weight_decay": 0.1}, net)
    net(torch.randn(4, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    kinds = {
        n: "exp_avg_sq" if "exp_avg_sq" in optimizer.state[p] else "muon" for n, p in net.named_parameters()
    }
    inner = {name for name, p in net.named_parameters() if p.ndim > 1 and not name.startswith("head")}
    inner.remove("features.0.weight")  # of one channel: timm finds it too narrow for Muon
    assert {name for name, kind in kinds.items() if kind == "muon"} == inner
    assert decays(optimizer, net)["head.weight"] == 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.optim.SGD", "lr": -1.0}, r"optimizer=torch\.optim\.SGD: .*-1\.0"),
        ({"_target_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 1.5]}, r"AdamW: .*1\.5"),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "nesterov": True}, r"SGD: .*momentum"),
        ({"_target_": "torch.optim.SGD", "lr": "fast"}, r"optimizer\.lr=fast"),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "momentun": 0.9}, r"momentun: .*did you mean 'momentum'"),
        (
            {"_target_": "torch.optim.Adan", "lr": 0.1},
            r"optimizer\._target_=torch\.optim\.Adan: .*did you mean 'Adam'",
        ),
        (
            {"_target_": "torch.optim.Rprop", "lr": 0.1, "weight_decay": 0.1},
            r"weight_decay: .*Rprop takes no",
        ),
        (
            {"_target_": "torch.optim.Muon", "lr": 0.1},
            r"optimizer=torch\.optim\.Muon: ",
        ),  # takes no convolutions
        ({"_target_": "timm.optim.create_optimizer_v2", "opt": "adamm", "lr": 0.1}, r"adamm"),
    ],
)
def test_what_an_optimizer_refuses(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_nothing_to_train() -> None:
    frozen = network().requires_grad_(False)
    with pytest.raises(UserError, match="no parameter to train"):
        build({"_target_": "torch.optim.SGD", "lr": 0.1}, frozen)


SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "weight_decay": 1e-3, "momentum": 0.9}


def options(optimizer: Optimizer, net: nn.Module, key: str) -> dict[str, float]:
    """Returns an option of each parameter by its name."""
    of = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in net.named_parameters()}


def test_groups_by_rule() -> None:
    net = network()
    groups = {
        "norms": {"match": "norm", "weight_decay": 0.0, "momentum": 0.5},
        "head": {"match": ["head"], "lr": 0.7},
        "biases": {"match": ["bias", "*.bias"], "lr": 0.2, "epochs": 3},
    }
    optimizer = build(SGD | {"groups": groups}, net)
    norms = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    kinds = {
        name: "norm" if name.rpartition(".")[0] in norms else "head" if name.startswith("head") else "weight"
        for name, _ in net.named_parameters()
    }
    assert set(kinds.values()) == {"norm", "head", "weight"}
    rate = {"norm": 0.1, "head": 0.7, "weight": 0.1}
    assert options(optimizer, net, "lr") == {name: rate[kind] for name, kind in kinds.items()}
    assert options(optimizer, net, "momentum") == {
        name: 0.5 if kind == "norm" else 0.9 for name, kind in kinds.items()
    }
    decay = {"norm": 0.0, "head": 1e-3, "weight": 1e-3}  # a rule's parameters decay, biases too
    assert decays(optimizer, net) == {name: decay[kind] for name, kind in kinds.items()}


def test_all_decay() -> None:
    net = network()
    assert set(decays(build(SGD | {"groups": {"all": {"match": "*"}}}, net), net).values()) == {1e-3}


def test_decay_that_is_not_times_the_rate() -> None:
    net = network()
    optimizer = build(SGD | {"decay_without_lr": True, "groups": {"head": {"match": "head", "lr": 0.5}}}, net)
    found = decays(optimizer, net)
    assert found["head.weight"] == pytest.approx(2e-3) and found["features.0.weight"] == pytest.approx(1e-2)


def test_a_rule_that_names_nothing() -> None:
    with pytest.raises(
        UserError, match=r"optimizer\.groups\.mine\.match=heads: no parameter is named so; ex"
    ):
        build(SGD | {"groups": {"mine": {"match": "heads", "lr": 0.5}}})


def test_an_option_that_the_optimizer_does_not_have() -> None:
    message = (
        r"optimizer\.groups\.norms\.momentun: torch\.optim\.SGD takes no such option; did you mean 'momentum'"
    )
    with pytest.raises(UserError, match=message):
        build(SGD | {"groups": {"norms": {"match": "norm", "momentun": 0.5}}})


def test_a_rate_for_256_samples() -> None:
    assert with_rate(SGD | {"lr_per_256": 0.1}, 1024)["lr"] == pytest.approx(0.4)
    assert with_rate(SGD, 1024) == SGD
