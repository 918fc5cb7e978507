"""A stranger's checkpoint loads as plain data; what it names is built from an allow-list, or not at all."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import imgcls

from imgcls.api import load
from imgcls.backbones.build import build_network
from imgcls.config.allowed import allowed
from imgcls.errors import UserError
from imgcls.tasks.classification import ImageClassifier

Said = Callable[..., str]
GOOD = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4, "dropout": 0.0}
MODEL = "def net(**options):\n    open('it_ran', 'w')\n"
BUILD = "imgcls.backbones.build"

# Each as a backbone; all but the last load with weights_only=True.
BACKBONES: dict[str, dict[str, Any]] = {
    "a hub's code on this disk": {
        "_target_": f"{BUILD}.torch.hub.load", "repo_or_dir": "hub", "model": "net", "source": "local",
    },
    "a hub's code on the network": {
        "_target_": f"{BUILD}.torch.hub.load", "repo_or_dir": "some/where", "model": "net",
        "source": "github", "trust_repo": True,
    },
    "a file of the victim's": {
        "_target_": "imgcls.backbones.build.logging.basicConfig", "filename": "precious.txt",
        "filemode": "w", "force": True,
    },
    "a download": {"_target_": "torch.hub.load_state_dict_from_url", "url": "http://127.0.0.1:9/x.pth"},
    "a shell": {"_target_": "os.system", "command": "touch it_ran"},
    "a folder": {"_target_": "os.mkdir", "path": "it_ran"},
    "an import": {"_target_": "importlib.import_module", "name": "trap"},
    "a module that acts when it is imported": {"_target_": "this.x"},
    "a package in the working directory": {"_target_": "trap.Network"},
    "a class that acts when it is made": {"_target_": "logging.FileHandler", "filename": "it_ran"},
    "a module of any kind": {"_target_": "torch.nn.Identity"},
    "a builder of configs": {
        "_target_": f"{BUILD}.build_network", "config": {"_target_": "os.mkdir", "path": "it_ran"},
    },
    "a library, past our wrapper": {"_target_": "timm.create_model", "model_name": "resnet18"},
    "a name that our module imports": {"_target_": "imgcls.backbones.resnet_cifar.UserError"},
    "a file that timm reads": {
        "_target_": "imgcls.backbones.timm.timm_network", "name": "resnet18", "checkpoint_path": "code.pth",
    },
    "a call within an allowed one": GOOD | {"width": {"_target_": "os.mkdir", "path": "it_ran"}},
    "a call within a list": GOOD | {"dropout": [1, {"_target_": "os.mkdir", "_args_": ["it_ran"]}]},
    "a call to make later": GOOD | {"width": {"_target_": "os.mkdir", "_partial_": True, "path": "it_ran"}},
    "a call among positional arguments": {
        "_target_": GOOD["_target_"], "_args_": [2, 1, 8, ({"_target_": "trap.Network"},)],
    },
    "an allowed call within an allowed one": GOOD | {"width": [{"_target_": GOOD["_target_"]}]},
    "a call of which only a part is made": {"_target_": "os.mkdir", "_partial_": True, "path": "it_ran"},
    "a path in place of a name": {"_target_": "../trap.py"},
    "no name": {"_target_": 5},
    "nothing": {},
}  # fmt: skip
WAYS = {
    "eval": "eval checkpoint=evil.ckpt",
    "predict": "predict checkpoint=evil.ckpt source=pictures",
    "export": "export checkpoint=evil.ckpt out=net.onnx",
    "teacher": "train callbacks=distillation callbacks.distillation.teacher=evil.ckpt logger=csv",
}


@pytest.fixture(autouse=True)
def traps(folder: Path) -> None:
    """What would leave a file `it_ran` if anything imported or called it, and a file to lose."""
    Path("hub").mkdir()
    Path("hub/hubconf.py").write_text(MODEL)
    Path("trap.py").write_text("open('it_ran', 'w')\n\n\nclass Network: ...\n")
    Path("precious.txt").write_text("precious")


def unharmed() -> bool:
    return (
        not Path("it_ran").exists()
        and Path("precious.txt").read_text() == "precious"
        and "trap" not in sys.modules
    )


def write(backbone: dict[str, Any], name: str = "evil.ckpt", **config: Any) -> Path:
    """Writes a checkpoint as train does, but for the backbone that it names."""
    spec = {"class_names": ["cat", "dog"], "channels": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
    made = ImageClassifier(spec, dict(GOOD))
    parameters = {**made.hparams, "backbone": backbone, "loss": {"_target_": "os.mkdir", "path": "it_ran"}}
    data = {"_target_": "imgcls.data.digits.Digits", "image_size": 8, "channels": 1}
    trained = {"seed": 0, "cwd": ".", "data": data, "trainer": {"accelerator": "cpu"}} | config
    torch.save({"state_dict": made.state_dict(), "hyper_parameters": parameters, "config": trained}, name)
    return Path(name)


@pytest.mark.parametrize("name", BACKBONES)
def test_no_way_in(name: str, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())  # as `python -m imgcls` has it
    torch.load(write(BACKBONES[name]), weights_only=True)
    for way, command in WAYS.items():
        message = said(*command.split())
        assert "the checkpoint's backbone" in message or "backbone.checkpoint_path" in message, (way, message)
        assert unharmed(), way
    with pytest.raises(UserError):
        ImageClassifier.load_from_checkpoint("evil.ckpt")
    assert unharmed()


TASKS = (
    "trap.Network", "os.mkdir", "imgcls.tasks.task.Task", "imgcls.tasks.classification.Path",
    "imgcls.api.load", "imgcls.tasks.metrics.Metrics", "torch.nn.Linear", "", 5, None,
)  # fmt: skip
METRICS = (
    "trap.Network", "os.mkdir", "torchmetrics.utilities.dim_zero_cat", "torchmetrics.classification.os",
    "torchmetrics.text.BERTScore", "torchmetrics.multimodal.CLIPScore", "torchmetrics.wrappers.Running",
)  # fmt: skip


@pytest.mark.parametrize(
    "place", [*[("task", name) for name in TASKS], *[("metric", name) for name in METRICS]]
)
def test_no_way_in_by_task_or_metric(
    place: tuple[str, Any], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    content = torch.load(write(GOOD), weights_only=True)
    part, name = place
    if part == "task":
        content["task"] = name
    else:
        content["hyper_parameters"]["metrics"] = {"mine": {"_target_": name, "path": "it_ran"}}
    torch.save(content, "evil.ckpt")
    for command in WAYS.values():
        said(*command.split())
        assert unharmed(), command


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_alone_are_taken(name: str) -> None:
    """`backbone.weights` takes the tensors of a checkpoint, and looks at nothing that it names."""
    build_network(GOOD | {"weights": str(write(BACKBONES[name]))}, 2, 1, 8)
    assert unharmed()


def test_in_a_process_of_its_own() -> None:
    """As a user runs it: with the working directory on Python's path."""
    write(BACKBONES["a package in the working directory"])
    done = imgcls("predict", "checkpoint=evil.ckpt", "source=pictures")
    assert (
        done.returncode == 1 and "trap is not trusted and was not imported; add trust=[trap]" in done.stderr
    )
    assert "Traceback" not in done.stderr and not Path("it_ran").exists()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/evil.ckpt", "https://example.org/a.ckpt", "s3://bucket/a"]
)
def test_addresses_are_not_loaded(address: str) -> None:
    with pytest.raises(UserError, match="addresses are not read; fetch the file first"):
        ImageClassifier.load_from_checkpoint(address)


def test_the_loss_and_the_like_are_not_built(here: Callable[..., None]) -> None:
    """Evaluation needs the network and the facts of the data; nothing else that is named is looked at."""
    write(GOOD)
    here("predict", "checkpoint=evil.ckpt", "source=pictures", "out=out.csv")
    assert unharmed() and Path("out.csv").is_file()


@pytest.mark.parametrize(
    "target", ["trap.Data", "os.mkdir", "imgcls.data.digits.np.load", "imgcls.data.module.UserError"]
)
def test_the_data_of_a_checkpoint(target: str, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    write(GOOD, data={"_target_": target, "path": "it_ran", "root": "."})
    assert "the checkpoint's data._target_" in said("eval", "checkpoint=evil.ckpt")
    assert unharmed()


NESTED = [
    {"_target_": "os.mkdir", "path": "it_ran"},
    [{"_target_": "os.mkdir", "_args_": ["it_ran"]}],
    {"deep": [[{"_target_": "trap.Network", "_partial_": True}]]},
]


@pytest.mark.parametrize("nested", NESTED)
def test_a_call_within_the_data_of_a_checkpoint(
    nested: Any, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    digits = {"_target_": "imgcls.data.digits.Digits", "image_size": 8, "channels": 1}
    for key in ("batch_size", "anything", "_args_"):
        write(GOOD, data=digits | {key: nested})
        message = said("eval", "checkpoint=evil.ckpt")
        assert "the checkpoint's data" in message or "the checkpoint's config.data" in message
        assert unharmed()


@pytest.mark.parametrize("form", [dict, lambda call: [call]], ids=["call", "list"])
@pytest.mark.parametrize(
    "key", ["precision", "accelerator", "benchmark", "deterministic", "limit_test_batches"]
)
def test_a_call_within_the_trainer_of_a_checkpoint(key: str, form: Callable[..., Any], said: Said) -> None:
    """By the command, and by the test of a model that Python loads."""
    write(GOOD, trainer={"accelerator": "cpu", key: form({"_target_": "os.mkdir", "path": "it_ran"})})
    for command in ("eval checkpoint=evil.ckpt", "predict checkpoint=evil.ckpt source=pictures"):
        assert f"the checkpoint's config.trainer.{key}" in said(*command.split())
        assert unharmed()
    with pytest.raises(UserError, match="the checkpoint's config.trainer"):
        load("evil.ckpt").test()
    assert unharmed()


@pytest.mark.parametrize("nested", NESTED)
def test_a_call_within_a_metric_of_a_checkpoint(
    nested: Any, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    f1 = {"_target_": "torchmetrics.classification.MulticlassF1Score"}
    for metric in (
        f1 | {"average": nested},
        {"_target_": "torchmetrics.MetricCollection", "metrics": [f1, nested]},
        {"_target_": "torchmetrics.MetricCollection", "metrics": f1, "_args_": nested},
    ):
        content = torch.load(write(GOOD), weights_only=True)
        content["hyper_parameters"]["metrics"] = {"mine": metric}
        torch.save(content, "evil.ckpt")
        for command in ("eval checkpoint=evil.ckpt", "predict checkpoint=evil.ckpt source=pictures"):
            assert "the checkpoint's metric" in said(*command.split())
            assert unharmed()


def test_no_text_of_a_checkpoint_is_read_as_an_interpolation(said: Said) -> None:
    f1 = {"_target_": "torchmetrics.classification.MulticlassF1Score", "average": "${oc.env:HOME}"}
    content = torch.load(write(GOOD), weights_only=True)
    content["hyper_parameters"]["metrics"] = {
        "mine": {"_target_": "torchmetrics.MetricCollection", "metrics": [f1]}
    }
    torch.save(content, "evil.ckpt")
    assert "${oc.env:HOME}" in said("predict", "checkpoint=evil.ckpt", "source=pictures")


NETWORK = """
from torch import nn


class Network(nn.Module):
    head_names = ("1",)

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
        self.add_module("layers", layers)

    def forward(self, images):
        return self.layers(images)
"""


def test_a_network_of_a_trusted_package(
    said: Said, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("leaf").mkdir()
    Path("leaf/__init__.py").touch()
    Path("leaf/nets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(Path.cwd())
    spec = {"class_names": ["cat", "dog"], "channels": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
    made = ImageClassifier(spec, {"_target_": "leaf.nets.Network"})
    config = {"seed": 0, "cwd": ".", "data": {}, "trainer": {"accelerator": "cpu"}}
    parameters = {"hyper_parameters": dict(made.hparams), "config": config}
    torch.save({"state_dict": made.state_dict(), **parameters}, "leaf.ckpt")
    for name in ("leaf", "leaf.nets"):
        del sys.modules[name]
    predict = ("predict", "checkpoint=leaf.ckpt", "source=pictures", "overwrite=true", "out=out.csv")
    assert "leaf is not trusted and was not imported; add trust=[leaf]" in said(*predict)
    assert "leaf" not in sys.modules
    here(*predict, "trust=[leaf]")
    Path("pyproject.toml").write_text("[tool.imgcls]\npackage = 'leaf'\n")
    here(*predict)
    for name in ("leaf", "leaf.nets"):
        del sys.modules[name]
    Path("pyproject.toml").write_text("[tool.imgcls\n")
    assert "pyproject.toml can't be read" in said(*predict)


def test_what_was_compiled_is_not_compiled_again() -> None:
    content = torch.load(write(GOOD), weights_only=True)
    content["hyper_parameters"]["compile"] = True
    torch.save(content, "evil.ckpt")
    assert ImageClassifier.load_from_checkpoint("evil.ckpt").network._compiled_call_impl is None


CIFAR = {
    "_target_": "imgcls.data.torchvision_sets.TorchvisionImages", "dataset": "CIFAR10", "root": "made",
    "image_size": 8, "channels": 3, "class_names": ["cat", "dog"], "mean": [0.5], "std": [0.5],
}  # fmt: skip


def test_no_network_and_no_folder_by_its_word(said: Said, here: Callable[..., None]) -> None:
    """A folder that a checkpoint names is read. Nothing is fetched, and nothing is made."""
    write(GOOD, data=CIFAR)
    message = said("eval", "checkpoint=evil.ckpt")
    assert "data.root=" in message and "download=false" in message
    here("export", "checkpoint=evil.ckpt", "out=net.onnx")  # checked on random pixels then
    assert not Path("made").exists()


@pytest.mark.parametrize("temperature", [float("nan"), 0.0, -1.0, float("inf")])
def test_a_temperature_that_is_none(temperature: float, said: Said) -> None:
    torch.save(torch.load(write(GOOD), weights_only=True) | {"temperature": temperature}, "evil.ckpt")
    assert "the checkpoint's temperature is" in said("predict", "checkpoint=evil.ckpt", "source=pictures")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"seed": -1}, "the checkpoint's config.seed=-1: input should be greater than or equal to 0"),
        ({"seed": 10**30}, "the checkpoint's config.seed"),
        ({"seed": "x"}, "the checkpoint's config.seed=x: input should be a valid integer"),
        ({"trainer": [1]}, "the checkpoint's config.trainer=[1]"),
        ({"data": [1]}, "the checkpoint's config.data=[1]"),
        ({"data": {"batch_size": 0}}, "the checkpoint's config.data.batch_size=0"),
        ({"data": {"root": 5}}, "the checkpoint's config.data.root=5"),
        ({"cwd": 5}, "the checkpoint's config.cwd=5"),
        ({"data": {"_target_": "imgcls.data.module.ImageDataModule"}}, "the checkpoint's data._target_="),
    ],
)
def test_a_config_that_is_none(config: dict[str, Any], expected: str, said: Said) -> None:
    write(GOOD, **config)
    assert expected in said("eval", "checkpoint=evil.ckpt")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"interpolation": "foo"}, "spec.interpolation=foo"),
        ({"image_size": 10**7}, "expected"),
        ({"crop_ratio": 1e-7}, "expected"),
        ({"channels": 0}, "spec.channels=0"),
        ({"bits": 10**9}, "spec.bits=1000000000"),
        ({"bits": 0}, "spec.bits=0"),
        ({"std": [float("nan")]}, "spec.std=nan"),
        ({"mean": [float("inf")]}, "spec.mean=inf"),
    ],
)
def test_facts_of_no_data(facts: dict[str, Any], expected: str, said: Said) -> None:
    content = torch.load(write(GOOD), weights_only=True)
    content["hyper_parameters"]["spec"] |= facts
    torch.save(content, "evil.ckpt")
    assert expected in said("predict", "checkpoint=evil.ckpt", "source=pictures")


@pytest.mark.parametrize(
    "target",
    ["torchvision.models.resnet18", "torchvision.models.resnet.resnet18", "torchvision.models.vit_b_16"],
)
def test_networks_of_torchvision_are_known(target: str) -> None:
    """They are what `backbone=torchvision` builds by name, so that no trust is needed."""
    assert allowed(target, "backbone").__name__ == target.rpartition(".")[2]
    with pytest.raises(UserError, match="torchvision is not trusted"):
        allowed(target, "data")


@pytest.mark.parametrize(
    "target",
    [
        "torchvision.models.get_model", "torchvision.models.resnet._resnet", "torchvision.models.ResNet",
        "torchvision.models.quantization.resnet18", "torchvision.models.resnet.vit_b_16",
        "torchvision.models.detection.fasterrcnn_resnet50_fpn", "torchvision.models.resnet.torch.hub.load",
        "torchvision.datasets.CIFAR10", "torchvision.resnet18", "torchvisionx.models.resnet18",
    ],
)  # fmt: skip
def test_nothing_else_of_torchvision_is(target: str) -> None:
    with pytest.raises(UserError, match="is not trusted and was not imported"):
        allowed(target, "backbone")


def test_weights_by_position_are_not_fetched(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("it was fetched"))
    write({"_target_": "torchvision.models.resnet18", "_args_": ["DEFAULT"]})
    message = said("predict", "checkpoint=evil.ckpt", "source=pictures")
    assert "backbone._args_=['DEFAULT']: expected all arguments by name" in message
    write({"_target_": "torchvision.models.resnet18", "weights": "DEFAULT", "pretrained": True})
    assert "its weights are of another network" in said("predict", "checkpoint=evil.ckpt", "source=pictures")
