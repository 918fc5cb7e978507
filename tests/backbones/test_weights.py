"""Weights from files: public ones, such as fit in part, and such as must not be loaded."""

import json
import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.backbones.build import build_network
from imgcls.backbones.weights import load_weights
from imgcls.errors import UserError
from imgcls.runs.checkpoints import find_checkpoint
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.task import load_checkpoint

CIFAR = "imgcls.backbones.resnet_cifar.resnet_cifar"
CNN = "imgcls.backbones.simple_cnn.simple_cnn"


class Shortcut(nn.Module):
    def __init__(self, planes: int) -> None:
        super().__init__()
        self.pad = planes // 4

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class PublishedBlock(nn.Module):
    """A block as github.com/akamaster/pytorch_resnet_cifar10 has it, written from its layout."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = Shortcut(planes) if stride != 1 or in_planes != planes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Published(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        rest = blocks - 1
        self.layer1 = nn.Sequential(*(PublishedBlock(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(
            PublishedBlock(16, 32, 2), *(PublishedBlock(32, 32, 1) for _ in range(rest))
        )
        self.layer3 = nn.Sequential(
            PublishedBlock(32, 64, 2), *(PublishedBlock(64, 64, 1) for _ in range(rest))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(out, out.shape[3]).flatten(1))  # type: ignore[no-any-return]


def published(depth: int = 20) -> Published:
    """Returns such a network with weights and statistics as after training."""
    torch.manual_seed(3)
    network = Published((depth - 2) // 6)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def load(path: Path, classes: int = 10, depth: int = 20) -> nn.Module:
    return build_network({"_target_": CIFAR, "depth": depth, "weights": str(path)}, classes, 3, 32)


@pytest.mark.parametrize(
    ("suffix", "key", "prefix"),
    [
        (".th", "state_dict", "module."), (".th", "state_dict", ""), (".pth", "model", ""),
        (".pth", "net", "module."), (".pth", None, ""), (".pt", None, "_orig_mod."),
        (".ckpt", "state_dict", "network."),
        (".pth", None, "module._orig_mod."), (".safetensors", None, ""), (".safetensors", None, "module."),
    ],
)  # fmt: skip
def test_public_weights_give_the_same_logits(
    suffix: str, key: str | None, prefix: str, tmp_path: Path
) -> None:
    network, path = published(), tmp_path / f"resnet20{suffix}"
    state = {prefix + name: value for name, value in network.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({key: state, "best_prec1": 92.6, "epoch": 200} if key else state, path)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(load(path).eval()(images), network(images), rtol=1e-6, atol=1e-6)


def test_public_weights_of_a_deeper_one(tmp_path: Path) -> None:
    network = published(56)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "resnet56.th")
    images = torch.randn(2, 3, 32, 32)
    logits = load(tmp_path / "resnet56.th", depth=56).eval()(images)
    torch.testing.assert_close(logits, network(images), rtol=1e-5, atol=1e-5)


def test_old_files_without_batch_counts_fit_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {k: v for k, v in published().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    with caplog.at_level(logging.INFO):
        load(tmp_path / "old.pth")
    assert "weights: all 97 tensors from" in caplog.text
    assert "not in the file" not in caplog.text


def test_what_does_not_fit_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = published().state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(16, 16, 5, 5)
    del state["bn1.bias"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(8)}
    torch.save(state, tmp_path / "part.pth")
    with caplog.at_level(logging.INFO):
        network = load(tmp_path / "part.pth")
    assert "other shape: layer1.0.conv1.weight 16×16×5×5 for 16×16×3×3" in caplog.text
    assert "not in the file: bn1.bias" in caplog.text
    assert (
        "not in the network: extra.0, extra.1, extra.2, extra.3, extra.4, extra.5 and 2 more" in caplog.text
    )
    assert torch.equal(network.get_parameter("bn1.weight"), state["bn1.weight"])


def test_other_classes_keep_the_new_head_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = published().state_dict()
    torch.save(state, tmp_path / "ten.pth")
    with caplog.at_level(logging.INFO):
        network = load(tmp_path / "ten.pth", classes=7)
    assert "other shape: linear.weight 10×64 for 7×64, linear.bias 10 for 7" in caplog.text
    assert network.get_parameter("linear.weight").shape == (7, 64)
    own = network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith("linear."))


def named_otherwise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state as another library might name it, in the same order."""
    return {re.sub(r"^(\w+?)(\d?)\.", r"body_\1.\2x.", key): value for key, value in state.items()}


def test_names_that_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = published().state_dict()
    torch.save({f"encoder.{key}".replace("linear", "fc"): v for key, v in state.items()}, tmp_path / "a.pth")
    config = {"_target_": CIFAR, "depth": 20, "weights": str(tmp_path / "a.pth")}
    with caplog.at_level(logging.INFO):
        network = build_network(config | {"rename": {"encoder.": "", "fc.": "linear."}}, 10, 3, 32)
    assert "weights: all 97 tensors" in caplog.text
    assert all(torch.equal(value, state[key]) for key, value in network.named_parameters())
    with pytest.raises(
        UserError, match=r"no name in .*a.pth has 'decoder.' in it; its first is encoder.conv1"
    ):
        build_network(config | {"rename": {"decoder.": ""}}, 10, 3, 32)
    with pytest.raises(UserError, match="two names in .* become the same"):
        build_network(config | {"rename": {"conv1": "conv", "conv2": "conv"}}, 10, 3, 32)


def test_names_that_have_a_prefix_more(tmp_path: Path) -> None:
    """Half of them, so that they do not count as another order."""
    state = {f"encoder.{key}": value for key, value in published().state_dict().items()}
    torch.save({"extra": torch.zeros(1), **state}, tmp_path / "prefix.pth")
    with pytest.raises(UserError, match=r"only 0 of 97 tensors fit .*; write backbone.rename={encoder.:''}"):
        load(tmp_path / "prefix.pth")


def test_names_of_another_library_fit_by_their_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = published().state_dict()
    torch.save(named_otherwise(state), tmp_path / "other.pth")
    with caplog.at_level(logging.INFO):
        network = load(tmp_path / "other.pth")
    assert (
        "taken by their order, because the names are others (body_conv.1x.weight for conv1.weight)"
        in caplog.text
    )
    assert "weights: all 97 tensors" in caplog.text
    assert all(torch.equal(value, state[key]) for key, value in network.named_parameters())


@pytest.mark.parametrize("fault", ["shape", "kind", "order"])
def test_another_order_or_shape_is_not_taken(fault: str, tmp_path: Path) -> None:
    state = named_otherwise(published().state_dict())
    keys = list(state)
    if fault == "shape":
        state[keys[0]] = torch.zeros(16, 3, 5, 5)
    elif fault == "kind":  # a bias where the network has a weight of the same shape
        keys[1], keys[2] = keys[2], keys[1]
        state = {key: state[key] for key in keys}
    else:
        state = dict(sorted(state.items(), reverse=True))
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match="only 0 of 97 tensors fit this network"):
        load(tmp_path / "other.pth")


@pytest.mark.parametrize("fault", ["missing", "more", "shape"])
def test_weights_that_must_be_whole(fault: str, tmp_path: Path) -> None:
    """A network that is evaluated as it is has none of its weights by chance."""
    state = published().state_dict()
    if fault == "missing":
        del state["layer3.2.bn2.running_var"]
    elif fault == "more":  # of a deeper network
        state["layer3.3.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    else:
        state["linear.weight"] = torch.zeros(7, 64)
    torch.save(state, tmp_path / "part.pth")
    config = {"_target_": CIFAR, "depth": 20, "weights": str(tmp_path / "part.pth")}
    build_network(config, 10, 3, 32)
    with pytest.raises(UserError, match="fit this network .*; expected the weights of this network"):
        build_network(config, 10, 3, 32, whole=True)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("classes", [["cat", "dog"], ["dog", "cat"], ["cat", "fox"], None])
def test_a_head_of_other_classes_stays_out(
    suffix: str, classes: list[str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many classes of other names, or in another order; a file that names none is judged by its shapes."""
    path, spec = tmp_path / f"two{suffix}", {"class_names": classes, "channels": 3}
    fresh = load_new(("cat", "dog"), None).state_dict()
    state = {f"network.{key}": value.contiguous() for key, value in fresh.items()}
    if suffix == ".safetensors":
        save_file(
            state, path, {"class_names": json.dumps(classes)} if classes else {"class_names": "cat, dog"}
        )
    else:
        torch.save(
            {"state_dict": state, "hyper_parameters": {"spec": spec} if classes else {"lr": 0.1}}, path
        )
    with caplog.at_level(logging.INFO):
        network = load_new(("cat", "dog"), path)
    same = classes in (["cat", "dog"], None)
    assert torch.equal(network.get_parameter("linear.weight"), state["network.linear.weight"]) == same
    assert torch.equal(network.get_parameter("conv1.weight"), state["network.conv1.weight"])
    assert ("35 of 37 tensors" in caplog.text and "of other classes: linear." in caplog.text) != same
    assert "other shape" not in caplog.text and "not in the" not in caplog.text


def load_new(names: tuple[str, ...], weights: Path | None) -> nn.Module:
    spec = {"class_names": names, "channels": 3, "image_size": 32, "mean": [0.5], "std": [0.5]}
    backbone = {"_target_": CIFAR, "depth": 8} | ({"weights": str(weights)} if weights else {})
    network: nn.Module = ImageClassifier(spec, backbone, {"_target_": "torch.nn.CrossEntropyLoss"}).network
    return network


class Code:
    """Pickled, it is a call that leaves a file behind."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"only 0 of \d+ tensors fit this network \(not in the file: conv1.weight"
    ):
        load(tmp_path / "other.pth")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"the folder has no checkpoints/best\.ckpt"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_truncated_file(suffix: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / f"cut{suffix}"
    state = published().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="damaged") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def unlisted(trace: Path) -> Code:
    return Code(open, str(trace), "w")


def blocked(trace: Path) -> Code:  # of a module that torch refuses by its name
    return Code(os.mkdir, str(trace))


@pytest.mark.parametrize("code", [unlisted, blocked])
@pytest.mark.parametrize("whole", [True, False])
def test_code_in_a_file_is_said_to_be_code(whole: bool, code: Callable[[Path], Code], tmp_path: Path) -> None:
    made = code(tmp_path / "ran")
    torch.save(
        made if whole else {"state_dict": published().state_dict(), "config": made}, tmp_path / "code.pth"
    )
    with pytest.raises(UserError, match="it carries code") as caught:
        load(tmp_path / "code.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [unlisted, blocked])
@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_file_does_not_run(plain: bool, code: Callable[[Path], Code], tmp_path: Path) -> None:
    path, trace = tmp_path / "code.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(code(trace), protocol=2)) if plain else torch.save(code(trace), path)
    with pytest.raises(UserError):
        load(path)
    assert not trace.exists()


def test_such_code_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(blocked(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UserError, match="it carries code or objects beside tensors"):
        load(tmp_path / "module.pth")


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], torch.zeros(2), {"epoch": 3}, {"state_dict": {"a": 1}}]
)
def test_a_file_that_is_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "no.pth")
    with pytest.raises(UserError, match="expected a state dict"):
        load(tmp_path / "no.pth")


@pytest.mark.parametrize(
    "odd", [{1: torch.zeros(2)}, {None: torch.zeros(2)}, {"bias": torch.zeros(2, device="meta")},
            {"bias": torch.zeros(2).to_sparse()}, {"bias": torch.zeros(2, dtype=torch.complex64)}]
)  # fmt: skip
def test_names_and_tensors_that_no_network_has(odd: dict[Any, Tensor], tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict() | odd, tmp_path / "odd.pth")
    with pytest.raises(
        UserError, match=f"expected a state dict, .* but {next(iter(odd))!r} is no such name"
    ) as caught:
        load_weights(nn.Linear(2, 2), tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"weight": torch.full((2, 2), torch.nan)}, "tensors with NaN or infinity: 1, such as weight"),
        ({"weight": torch.ones(2, 2, dtype=torch.int8)}, "weight is of torch.int8; expected floats of 16"),
        (
            {"weight": torch.ones(2, 2).to(torch.float8_e5m2)},
            "weight is of torch.float8_e5m2; expected float",
        ),
        ({"module.0": torch.ones(1), "0": torch.ones(1), "module.1": torch.ones(1)}, "has 0 and module.0;"),
    ],
)
def test_numbers_that_would_be_wrong(wrong: dict[str, Tensor], line: str, tmp_path: Path) -> None:
    """What the network takes without an error, and answers wrongly with: NaN, quantized, one name twice."""
    own = {} if "0" in wrong else nn.Linear(2, 2).state_dict()
    torch.save(own | wrong, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        load_weights(nn.Linear(2, 2), tmp_path / "wrong.pth")
    assert "\n" not in str(caught.value)


def test_the_mean_of_the_steps_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a training's file with both the means, with their counter, as timm and torchvision test them."""
    made, network = nn.Linear(2, 2).half(), nn.Linear(2, 2)
    means = {f"module.{key}": value for key, value in made.state_dict().items()}
    both = {"model": nn.Linear(2, 2).state_dict(), "model_ema": means | {"n_averaged": torch.tensor(9)}}
    torch.save(both, tmp_path / "both.pth")
    with caplog.at_level(logging.INFO):
        load_weights(network, tmp_path / "both.pth", whole=True)
    assert torch.equal(network.weight, made.weight.float())
    assert "has model_ema and model; model_ema is taken" in caplog.text


def test_an_empty_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="only 0 of"):
        load_weights(nn.Linear(2, 2), tmp_path / "empty.pth")


def classifier() -> ImageClassifier:
    names = [str(i) for i in range(10)]
    spec = {"class_names": names, "channels": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
    return ImageClassifier(spec, {"_target_": CNN, "width": 4}, {"_target_": "torch.nn.CrossEntropyLoss"})


def content() -> dict[str, Any]:
    made = classifier()
    parameters = dict(made.hparams)
    return {"state_dict": made.state_dict(), "hyper_parameters": parameters, "config": {"seed": 3}}


def test_checkpoint(tmp_path: Path) -> None:
    saved = content()
    torch.save(saved, tmp_path / "a.ckpt")
    loaded, config = load_checkpoint(tmp_path / "a.ckpt")
    assert config["seed"] == 3
    assert not loaded.training
    assert not loaded.network.training
    assert all(torch.equal(value, saved["state_dict"][key]) for key, value in loaded.state_dict().items())


def test_checkpoint_of_another_network(tmp_path: Path) -> None:
    saved = content()
    saved["hyper_parameters"]["backbone"] = {"_target_": CNN, "width": 8}
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="its weights are of another network than its settings say") as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value)


def test_checkpoint_with_unknown_settings(tmp_path: Path) -> None:
    saved = content()
    saved["hyper_parameters"]["backbone"]["colour"] = "red"
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="the checkpoint's backbone.colour: .* takes no 'colour'"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_truncated_checkpoint(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"checkpoint=.*damaged"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_checkpoint_with_code(tmp_path: Path) -> None:
    torch.save({**content(), "extra": unlisted(tmp_path / "ran")}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"checkpoint=.*it carries code"):
        load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("saved", [{"conv.weight": torch.zeros(1)}, [1, 2], torch.zeros(2)])
def test_no_checkpoint_but_a_state_dict(saved: Any, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"not written by imgcls train; for a state dict use backbone\.weights="
    ):
        load_checkpoint(tmp_path / "a.pth")


def test_find_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        find_checkpoint(str(tmp_path / "none.ckpt"))
    with pytest.raises(UserError, match=r"no checkpoints/best\.ckpt or last\.ckpt"):
        find_checkpoint(str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    assert find_checkpoint(str(tmp_path)) == folder / "last.ckpt"
    (folder / "best.ckpt").touch()
    assert find_checkpoint(str(tmp_path)) == folder / "best.ckpt"
    assert find_checkpoint(str(folder)) == folder / "best.ckpt"
    assert find_checkpoint(str(folder / "last.ckpt")) == folder / "last.ckpt"


@pytest.mark.parametrize("described", [False, True])
def test_positions_are_interpolated_to_the_size_of_the_data(tmp_path: Path, described: bool) -> None:
    """As timm's own way to change a network's size does it, also where a file of ours says a rectangle."""
    node: dict[str, Any] = {"_target_": "imgcls.backbones.timm.timm_network"}
    node |= {"name": "vit_tiny_patch16_224", "depth": 1, "embed_dim": 12, "num_heads": 2}
    before = build_network(node, 2, 3, (32, 80) if described else 32)
    torch.nn.init.normal_(before.pos_embed)  # type: ignore[arg-type]
    facts = {"class_names": json.dumps(["a", "b"]), "image_size": "[32, 80]"} if described else None
    save_file(before.state_dict(), tmp_path / "net.safetensors", facts)
    found = build_network(node | {"weights": str(tmp_path / "net.safetensors")}, 2, 3, (48, 64))
    before.set_input_size(img_size=(48, 64))  # type: ignore[operator]
    torch.testing.assert_close(found.pos_embed, before.pos_embed)
    assert found.pos_embed.shape == (1, 13, 12)
