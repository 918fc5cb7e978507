"""What learns, in which epoch, how fast; and that the rest stays as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.command import imgcls
from support.composed import composed, files
from support.runs import SHORT, assert_same_run
from torch import Tensor, nn

from imgcls.augment.batch import BatchAugment, changes_images
from imgcls.augment.settings import Augment
from imgcls.backbones.build import build_network
from imgcls.backbones.layers import head_names, layers, reset_head
from imgcls.backbones.torchvision import torchvision_network
from imgcls.callbacks.ema import EMA
from imgcls.callbacks.features import Features, learning_part
from imgcls.callbacks.finetune import Finetune
from imgcls.callbacks.progressive_resizing import ProgressiveResizing
from imgcls.commands.build import read_config
from imgcls.config import check as configs
from imgcls.data.digits import Digits
from imgcls.engine.signals import STOPPED
from imgcls.errors import UserError
from imgcls.optim import build_optimizer
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.task import data_of, load_checkpoint

CNN = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1}
RESNET = {"_target_": "imgcls.backbones.resnet_cifar.resnet_cifar", "depth": 8}


def torchvision(name: str) -> dict[str, Any]:
    return {"_target_": "imgcls.backbones.torchvision.torchvision_network", "name": name}


def timm(name: str) -> dict[str, Any]:
    return {"_target_": "imgcls.backbones.timm.timm_network", "name": name}


def fit(
    callbacks: list[Callback],
    epochs: int = 3,
    augment: dict[str, Any] | None = None,
    backbone: dict[str, Any] = CNN,
    optimizer: dict[str, Any] = ADAMW,
) -> ImageClassifier:
    torch.manual_seed(0)
    data = Digits(batch_size=64, augment=Augment(**(augment or {})))
    module = ImageClassifier(
        vars(data.spec), backbone, {"_target_": "torch.nn.CrossEntropyLoss"}, optimizer,
        {"_target_": "imgcls.optim.constant"},
        augment or {},
    )  # fmt: skip
    quiet: dict[str, Any] = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False,
    }  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", callbacks=callbacks, max_epochs=epochs, use_distributed_sampler=False, **quiet
    )
    trainer.fit(module, datamodule=data)
    return module


class Watch(Callback):
    """Keeps which tensors changed in each epoch."""

    def __init__(self) -> None:
        self.changed: list[set[str]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self.before = {name: value.clone() for name, value in pl_module.network.state_dict().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        now: dict[str, Tensor] = pl_module.network.state_dict()
        self.changed.append(
            {name for name, value in now.items() if not torch.equal(value, self.before[name])}
        )
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


HEAD = {"head.weight", "head.bias"}


def test_a_linear_probe_changes_the_head_alone() -> None:
    watch = Watch()
    fit([Finetune(head_epochs=None), watch], augment={"flip": 0.5})
    assert watch.changed == [HEAD] * 3  # no running statistics either


def test_features_are_computed_once_and_change_nothing() -> None:
    direct, reused = Watch(), Watch()
    first = fit([Finetune(head_epochs=None, reuse_features=False), direct])
    second = fit([Finetune(head_epochs=None), reused])
    for a, b in zip(direct.metrics, reused.metrics, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    torch.testing.assert_close(first.network.state_dict(), second.network.state_dict(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_any_precision(precision: str, train: Callable[..., Any]) -> None:
    """Features, the mean of the weights and a teacher meet weights of other types than float32."""
    given = [*SHORT, "backbone.width=4", "trainer.limit_train_batches=2", f"trainer.precision={precision}"]
    assert train(*given, "test=false", "hydra.run.dir=run", "callbacks=ema") is None
    assert train(*given, "test=false", "hydra.run.dir=cut", "callbacks=ema", stop=3) == STOPPED
    assert train("resume=cut") is None
    assert_same_run(Path("run"), Path("cut"))
    more = ["callbacks=distillation", "callbacks.distillation.teacher=run", "finetune=staged"]
    assert train(*given, *more, "test=false") is None
    weights = ["finetune=linear_probe", "augment=none", "backbone.weights=run", "test=false"]
    for reuse in ("true", "false"):
        words = [f"callbacks.finetune.reuse_features={reuse}", f"hydra.run.dir={reuse}"]
        assert train(*given, *weights, *words) is None
    first, second = (
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("true", "false")
    )
    head = "network.head.weight"
    torch.testing.assert_close(first["state_dict"][head], second["state_dict"][head])


def test_bitfit_changes_biases_and_the_head_alone() -> None:
    watch = Watch()
    module = fit([Finetune(only="biases"), watch], epochs=2, backbone=RESNET)
    biases = {name for name, _ in module.network.named_parameters() if name.endswith("bias")}
    assert (
        len(biases) > 5 and watch.changed == [biases | {"linear.weight"}] * 2
    )  # no statistics, no norm's weight
    watch = Watch()
    fit([Finetune(head_epochs=1, only="biases"), watch], epochs=2)
    assert watch.changed[0] == HEAD and watch.changed[1] > HEAD


def test_a_network_that_has_not_learnt(caplog: pytest.LogCaptureFixture) -> None:
    torch.save(build_network(CNN, 10, 1, 8).state_dict(), "start.pth")
    for words, warns in {
        "finetune=lora": True, "finetune=lora backbone.weights=start.pth": False, "finetune=none": False
    }.items():  # fmt: skip
        caplog.clear()
        read_config(composed(*words.split(), "backbone.width=4"))
        assert ("the network has not learnt, and what is frozen stays as drawn" in caplog.text) == warns


def test_rates_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="imgcls.callbacks.finetune"):
        fit([Finetune(layer_decay=0.5)], epochs=2, backbone=RESNET)
        fit([Finetune(body_lr=0.1)], epochs=1, backbone=RESNET)
        fit([Finetune()], epochs=1)
    decayed, shared = (line for line in caplog.messages if line.startswith("rates: "))
    assert decayed == (
        "rates: linear 0.01, layer3.0 0.005, layer2.0 0.0025, layer1.0 0.00125, bn1 0.000625, conv1 0.000313"
    )
    assert shared == "rates: linear 0.01, layer3.0 to conv1 0.001"


class Count(Callback):
    """Counts how often the body ran."""

    def __init__(self) -> None:
        self.batches = 0
        self.reading: list[bool] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def look(*_: Any) -> None:
            self.batches += 1

        pl_module.get_submodule("network.features").register_forward_hook(look)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reading.append(isinstance(data_of(trainer).sets["train"], Features))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.test = data_of(trainer)


def test_the_body_runs_once_an_image() -> None:
    count = Count()
    fit([count, Finetune(head_epochs=None)], epochs=4)
    assert count.reading == [True] * 4
    assert count.batches == -(-1295 // 64) + -(-143 // 64)
    assert not any(isinstance(split, Features) for split in count.test.sets.values())
    count = Count()
    fit([count, Finetune(head_epochs=None)], epochs=2, augment={"flip": 0.5})
    assert count.reading == [False] * 2 and count.batches > 40
    count = Count()
    fit([count, Finetune(head_epochs=None), ProgressiveResizing(multiple=4)], epochs=1)
    assert count.reading == [False]


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (["augment=none"], False), (["augment=none", "augment.flip=null"], False),
        (["augment=none", "augment.flip=0.5"], True), (["augment=none", "augment.erase=0.1"], True),
        (["augment=none", "augment.mixup.probability=0.5"], True),
        *(([f"augment={name}"], True) for name in files("augment") if name != "none"),
    ],
)  # fmt: skip
def test_which_augmentation_lets_features_be_reused(given: list[str], changes: bool) -> None:
    """As the config has it, whose settings are no defaults of the class; digits have no mirror image."""
    augment = configs.typed(composed(*given)["augment"], Augment, "augment")
    assert changes_images(BatchAugment(augment, Digits().spec)) == changes


def test_staged_and_gradual(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    fit([Finetune(head_epochs=1, body_lr=0.1), watch, EMA(0.9)], epochs=2)
    assert "WARNING" not in {one.levelname for one in caplog.records}
    fit([Finetune(head_epochs=2)], epochs=2)
    words = "callbacks.finetune.head_epochs=2: the training is over by then, so that the head alone learns"
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert told == [f"finetune: {words}"]
    assert watch.changed[0] == HEAD and watch.changed[1] > HEAD
    assert any("running_mean" in name for name in watch.changed[1])
    watch = Watch()
    fit([Finetune(keep_statistics=True), watch], epochs=1)
    assert "features.1.weight" in watch.changed[0] and not any("running" in name for name in watch.changed[0])
    watch = Watch()
    module = fit([Finetune(head_epochs=1, layer_epochs=1), watch], epochs=4)
    number = layers(module.network)
    top = number["head.weight"]
    for epoch, changed in enumerate(watch.changed):
        assert {name for name in changed if name in number} == {
            n for n, layer in number.items() if layer >= top - epoch
        }


def test_rates_fall_from_the_head_down() -> None:
    network = build_network(RESNET, 5, 1, 8)
    number = layers(network)
    top = max(number.values())
    scales = {name: 0.5 ** (top - layer) for name, layer in number.items()}
    config = {"_target_": "torch.optim.SGD", "lr": 0.4, "weight_decay": 0.1, "momentum": 0.9}
    optimizer = build_optimizer(config, network, torch.device("cpu"), True, scales)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in network.named_parameters()} == {
        n: 0.4 * s for n, s in scales.items()
    }
    assert optimizer.param_groups[0]["lr"] == 0.4  # what is logged as lr is the head's
    assert number["conv1.weight"] == 0 and number["linear.weight"] == top
    assert number["layer1.0.conv1.weight"] < number["layer2.0.conv1.weight"] < number["layer3.0.conv1.weight"]


@pytest.mark.parametrize(
    ("backbone", "size", "least"),
    [
        (CNN, 16, 7), (RESNET, 16, 5), (torchvision("resnet18"), 32, 10), (torchvision("vgg11_bn"), 32, 10),
        (torchvision("mobilenet_v3_small"), 32, 13), (torchvision("convnext_tiny"), 32, 20),
        (torchvision("squeezenet1_1"), 64, 8), (torchvision("inception_v3"), 299, 15),
        (torchvision("vit_b_32"), 32, 14), (torchvision("swin_t"), 32, 10),
        (timm("resnet18"), 32, 5), (timm("vit_tiny_patch16_224"), 32, 13), (timm("efficientnet_b0"), 32, 7),
        (timm("deit_tiny_distilled_patch16_224"), 32, 13),
    ],
)  # fmt: skip
def test_layers_of_every_kind_of_network(backbone: dict[str, Any], size: int, least: int) -> None:
    network = build_network(backbone, 7, 3, size)
    number = layers(network)
    assert set(number) == {name for name, _ in network.named_parameters()}
    assert set(number.values()) == set(range(max(number.values()) + 1)) and max(number.values()) + 1 >= least
    tuning = Finetune(head_epochs=1)
    tuning.layers = number
    tuning.freeze(network, 0)
    heads = tuple(f"{head}." for head in head_names(network))
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        n for n in number if n.startswith(heads)
    }
    outputs = network(torch.randn(2, 3, size, size))
    assert isinstance(outputs, Tensor)  # no auxiliary outputs while the body is in evaluation mode
    outputs.sum().backward()
    tuning.freeze(network, 1)
    assert all(p.requires_grad for p in network.parameters()) and all(m.training for m in network.modules())


@pytest.mark.parametrize(
    "given", [{"head_epochs": -1}, {"layer_epochs": -1}, {"body_lr": 0.0}, {"layer_decay": 1.5}]
)
def test_wrong_settings(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"callbacks\.finetune\.{next(iter(given))}="):
        configs.check({"_target_": "imgcls.callbacks.finetune.Finetune", **given}, "callbacks.finetune")


class Losses(Callback):
    """Keeps the loss of each training step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.seen.append(float(outputs["loss"]))


def test_reuse_keeps_the_dropout_of_the_head() -> None:
    """A dropout that lies beside the head learns with it, drawn alike with features and with images."""
    seen = []
    for reuse in (True, False):
        losses, reading = Losses(), Count()
        reading.on_fit_start = lambda *_: None  # type: ignore[method-assign]
        backbone = {**torchvision("mnasnet0_5"), "dropout": 0.5}
        fit([Finetune(head_epochs=None, reuse_features=reuse), losses, reading], 1, backbone=backbone)
        assert reading.reading == [reuse]
        seen.append(losses.seen)
    assert seen[0] == pytest.approx(seen[1], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mnasnet0_5", "classifier"),
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("vit_b_32", "heads"),
    ],
)
def test_what_learns_with_the_head(name: str, part: str) -> None:
    with torch.device("meta"):
        network = torchvision_network(7, 3, 32, name)
    assert learning_part(network) == part


@pytest.mark.parametrize(
    "optimizer", [{"_target_": "torch.optim.SGD", "lr": 0.1}, {"_target_": "torch.optim.AdamW", "lr": 0.01}]
)
def test_a_probe_learns_alike_on_features_of_any_scale(optimizer: dict[str, Any]) -> None:
    seen = []
    for scale in (1.0, 2.0**-7, 2.0**7):
        losses, made = Losses(), Scaled(scale)
        fit([made, Finetune(head_epochs=None), losses], 1, optimizer=optimizer)
        seen.append(losses.seen)
    assert min(seen[0]) < seen[0][0] - 0.01
    assert seen[1] == pytest.approx(seen[0], rel=1e-3) and seen[2] == pytest.approx(seen[0], rel=1e-3)


class Scaled(Callback):
    """Makes features larger or smaller by a factor, and starts the head at zero."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reset_head(pl_module.get_submodule("network"))
        body = pl_module.get_submodule("network.features")
        body.register_forward_hook(lambda module, given, out: out * self.factor)


def test_new_heads_start_at_zero_and_loaded_ones_do_not(tmp_path: Path) -> None:
    network = build_network(CNN, 10, 1, 8)
    torch.save(network.state_dict(), tmp_path / "ten.pth")
    given = CNN | {"weights": str(tmp_path / "ten.pth")}
    start, loaded = network.state_dict(), build_network(given, 10, 1, 8).state_dict()
    assert torch.equal(loaded["head.weight"], start["head.weight"])
    other = build_network(given, 7, 1, 8).state_dict()
    assert not other["head.weight"].any() and not other["head.bias"].any()
    assert torch.equal(other["features.0.weight"], start["features.0.weight"])
    assert build_network(CNN, 7, 1, 8).state_dict()["head.weight"].any()


def test_a_new_head_before_a_relu_has_gradients() -> None:
    network = torchvision_network(3, 3, 64, "squeezenet1_1")
    reset_head(network)
    network.eval()(torch.rand(2, 3, 64, 64)).logsumexp(1).sum().backward()
    head = network.get_submodule(head_names(network)[0])
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


class TwoHeads(nn.Module):
    """Averages two heads in evaluation, as distilled transformers do."""

    head_names = ("head",)

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        size = in_channels * image_size**2
        self.features = nn.Flatten()
        self.head, self.other = nn.Linear(size, num_classes), nn.Linear(size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.features(images)
        out: Tensor = (self.head(values) + self.other(values)) / 2
        return out


@pytest.mark.parametrize(("target", "reused"), [(CNN["_target_"], True), (f"{__name__}.TwoHeads", False)])
def test_a_head_is_the_end_or_is_not(target: str, reused: bool) -> None:
    """Also where its weights are 0, and any comparison of outputs would hold."""

    class Zero(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            for head in (m for m in pl_module.modules() if isinstance(m, nn.Linear)):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    count = Count()
    fit([Zero(), count, Finetune(head_epochs=None)], epochs=2, backbone={"_target_": target})
    assert count.reading == [reused] * 2


@pytest.mark.slow
def test_as_used_with_two_processes(said: Callable[..., str]) -> None:
    done = imgcls(
        "train", "finetune=staged", "trainer=ddp_cpu", "trainer.max_epochs=2",
        "trainer.limit_train_batches=3", "logger=csv", "callbacks=ema",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "epoch 1: 1,290 of 288,170 parameters learn, from head on" in done.stdout
    assert "epoch 2: 288,170 of 288,170 parameters learn" in done.stdout
    assert "layer_epochs=-2" in said("train", "finetune=gradual", "callbacks.finetune.layer_epochs=-2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "unfrozen"), [("linear_probe", 1), ("gradual", 2), ("layer_decay", 99), ("bitfit", 99)]
)
def test_every_mode_with_two_processes_and_ema(mode: str, unfrozen: int) -> None:
    """Two epochs from weights in a file: the upper layers change, the checkpoint has the others as before."""
    torch.save(build_network(CNN, 10, 1, 8).state_dict(), "start.pth")
    done = imgcls(
        "train", f"finetune={mode}", "trainer=ddp_cpu", "trainer.max_epochs=2",
        "trainer.limit_train_batches=3", "logger=csv", "callbacks=ema", "backbone.width=4",
        "backbone.weights=start.pth", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    start = torch.load("start.pth", weights_only=True)
    trained = load_checkpoint(Path("run/checkpoints/last.ckpt"))[0].network
    number = layers(trained)
    lowest = max(number.values()) + 1 - unfrozen
    changed = {name for name, value in trained.named_parameters() if not torch.equal(value, start[name])}
    learn = {name for name, layer in number.items() if layer >= lowest}
    if mode == "bitfit":
        learn = {name for name in learn if name.endswith("bias") or name in HEAD}
        lowest = max(number.values())
    assert changed == learn
    frozen = {name.rpartition(".")[0] for name, layer in number.items() if layer < lowest}
    statistics = [name for name in start if "running" in name and name.rpartition(".")[0] in frozen]
    assert all(torch.equal(trained.state_dict()[name], start[name]) for name in statistics)
