"""Each published recipe of conf/experiment: its rates, decays, batch, sizes and mixing are those of its
source, for the number of devices that the source had; and it takes two steps on a made set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.composed import CONF, training
from support.pictures import write_picture
from torch import nn

from imgcls.augment.batch import BatchAugment
from imgcls.augment.settings import Augment
from imgcls.backbones.build import build_network
from imgcls.config.training import TrainConfig
from imgcls.engine.build import share_batch
from imgcls.optim import Steps, build_optimizer, build_schedule
from imgcls.spec import DataSpec

CIFAR, IMAGENET = 50_000, 1_281_167
ALL = {"weight", "bias", "norm"}  # kinds of parameters


@dataclass
class Source:
    """What a source says. `rates`: by epoch, the learning rate at its first step."""

    images: int
    devices: int
    batch: int  # of a step
    epochs: int
    rates: dict[float, float]
    decay: float
    decayed: set[str]
    sizes: tuple[int, int]  # in training and test
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0
    smoothing: float = 0.0
    repeats: int = 1
    images_of: float = 1.0  # the share of the training images that is trained on


HE = {0: 0.1, 99.9: 0.1, 100: 0.01, 149.9: 0.01, 150: 0.001, 199.9: 0.001}
RSB: dict[str, Any] = {
    "images": IMAGENET,
    "devices": 8,
    "batch": 2048,
    "decayed": {"weight"},
    "mixup": 0.5,
    "cutmix": 0.5,
}


def halved(first: float, last: float) -> float:
    return (first + last) / 2


SOURCES = {
    **{
        f"cifar10_resnet{depth}": Source(CIFAR, 1, 128, 200, HE, 1e-4, ALL, (32, 32))
        for depth in (20, 32, 44, 56)
    },
    # trainer.py divides the rate by ten for the first epoch; here it rises within it
    "cifar10_resnet110": Source(CIFAR, 1, 128, 200, {**HE, 0: 0.01, 1: 0.1}, 1e-4, ALL, (32, 32)),
    "cifar10_resnet18": Source(CIFAR, 1, 128, 200, {0: 0.1, 100: 0.05, 100.9: 0.05}, 5e-4, ALL, (32, 32)),
    "cifar100_wrn28_10": Source(
        CIFAR, 1, 128, 200, {0: 0.1, 60: 0.02, 120: 0.004, 159.9: 0.004, 160: 0.0008}, 5e-4, ALL, (32, 32)
    ),
    "resnet50_classic": Source(
        IMAGENET, 8, 256, 90, {0: 0.1, 29.9: 0.1, 30: 0.01, 60: 0.001, 89.9: 0.001}, 1e-4, ALL, (224, 224)
    ),
    "resnet50_torchvision": Source(
        IMAGENET, 8, 1024, 600, {0: 0.005, 1: 0.104, 5: 0.5, 302.5: 0.25}, 2e-5, {"weight", "bias"},
        (176, 224), 0.5, 0.5, 0.1, 0.1, 4,
    ),
    "resnet50_a1": Source(
        epochs=600, rates={0: 1e-4, 1: 1.08e-3, 300: halved(5e-3, 1e-6)}, decay=0.01, sizes=(224, 224),
        smoothing=0.1, repeats=3, **RSB,
    ),
    "resnet50_a2": Source(
        epochs=300, rates={0: 1e-4, 1: 1.08e-3, 150: halved(5e-3, 1e-6)}, decay=0.02, sizes=(224, 224),
        repeats=3, **RSB,
    ),
    "resnet50_a3": Source(
        epochs=100, rates={0: 1e-4, 1: 1.68e-3, 50: halved(8e-3, 1e-6)}, decay=0.02, sizes=(160, 224), **RSB
    ),
    "deit_small": Source(
        IMAGENET, 8, 1024, 300, {0: 1e-6, 1: 2.008e-4, 150: halved(1e-3, 1e-5)}, 0.05, {"weight"}, (224, 224),
        0.5, 0.5, 0.25, 0.1, 3,
    ),
    "simple_vit_small": Source(
        IMAGENET, 8, 1024, 90, {0: 0.0, 4: 1e-3 * 4 * 1238 / 10_000}, 0.1, {"weight"}, (224, 224), 1.0,
        images_of=0.99,
    ),
}  # fmt: skip
PUBLISHED = [
    path.stem for path in sorted((CONF / "experiment").glob("*.yaml")) if "not run here" in path.read_text()
]


def test_every_published_recipe_is_held_to_its_source() -> None:
    assert set(PUBLISHED) == set(SOURCES)


def recipe(name: str) -> TrainConfig:
    return training(f"experiment={name}", "data.root=.")


def kind(network: nn.Module, name: str) -> str:
    module = network.get_submodule(name.rpartition(".")[0])
    if "norm" in type(module).__name__.lower():
        return "norm"
    return "bias" if name.endswith("bias") else "weight"


def network_of(config: TrainConfig, side: int) -> nn.Module:
    with torch.device("meta"):
        return build_network(config.backbone, 1000 if side > 32 else 10, 3, side)


@pytest.mark.parametrize("name", SOURCES)
def test_the_settings_of_its_source(name: str) -> None:
    source, config = SOURCES[name], recipe(name)
    data: Any = SimpleNamespace(batch_size=config.data["batch_size"], sets={"train": range(source.images)})
    trainer: Any = SimpleNamespace(world_size=source.devices, accumulate_grad_batches=1)
    share_batch(config.trainer, data, trainer)
    assert data.batch_size * source.devices * trainer.accumulate_grad_batches == source.batch
    assert trainer.accumulate_grad_batches == 1  # the source's devices take the batch at once
    assert (config.trainer.max_epochs, config.data.get("repeats", 1)) == (source.epochs, source.repeats)
    test = config.data["image_size"]
    assert (config.data.get("train_size") or test, test) == source.sizes
    network = network_of(config, test)
    optimizer = build_optimizer(config.optimizer, network, torch.device("cpu"), fused=False)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found: dict[str, set[float]] = {}
    for key, parameter in network.named_parameters():
        if not key.endswith(("pos_embed", "cls_token")):
            found.setdefault(kind(network, key), set()).add(round(decay[id(parameter)], 12))
    assert found == {one: {source.decay if one in source.decayed else 0.0} for one in found}
    images = int(source.images * source.images_of) if source.images_of < 1 else source.images
    per_epoch = images // source.devices // data.batch_size
    schedule = build_schedule(config.scheduler, optimizer, Steps(per_epoch, per_epoch * source.epochs))
    factor = schedule[0]["scheduler"].lr_lambdas[0]
    rates = {epoch: factor(int(epoch * per_epoch)) * optimizer.defaults["lr"] for epoch in source.rates}
    assert rates == pytest.approx(source.rates, rel=0.012), per_epoch
    assert config.loss.get("label_smoothing", 0.0) == source.smoothing


@pytest.mark.parametrize("name", SOURCES)
def test_how_much_is_mixed_and_erased(name: str) -> None:
    """Over 2,000 images, of which three standard errors are 0.034 at the most."""
    source, settings = SOURCES[name], recipe(name).augment
    assert settings["mixup"]["probability"] == source.mixup
    assert settings["cutmix"]["probability"] == source.cutmix
    values = torch.arange(1.0, 2001).view(-1, 1, 1, 1).expand(2000, 3, 16, 16)  # each image has one value
    targets = torch.arange(2000) % 2
    erased = augmented({k: settings[k] for k in ("erase", "erase_with")}, values, targets)
    assert share(erased != values) == pytest.approx(source.erase, abs=0.034)
    mixed = augmented({k: settings[k] for k in ("mixup", "cutmix")}, values, targets)
    pasted = (mixed - mixed[:, :, :1, :1]).abs().flatten(1).amax(1) > 1e-2  # of more than one value
    blended = ~pasted & ((mixed - values)[:, 0, 0, 0].abs() > 1e-2)
    # Beta(0.1, 0.1) leaves a third of the shares within 1e-4 of 0 or 1, and a patch may lie outside
    assert source.cutmix * 0.85 - 0.034 <= share(pasted) <= source.cutmix + 0.034
    assert source.mixup * 0.6 - 0.034 <= share(blended) <= source.mixup + 0.034


def augmented(settings: dict[str, Any], values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    spec = DataSpec(("a", "b"), 3, 16, (0.5,) * 3, (0.5,) * 3)
    return BatchAugment(Augment.read(settings), spec).mix(values, targets)[0]


def share(changed: torch.Tensor) -> float:
    return (
        changed.flatten(1).any(1).float().mean().item() if changed.ndim > 1 else changed.float().mean().item()
    )


SMALLER = {  # what makes two steps on a CPU quick; the rest is the recipe's
    "cifar": ("data.batch_size=4",),
    "cifar100_wrn28_10": ("data.batch_size=2", "backbone.depth=10", "backbone.widen=1"),
    "resnet50": ("data.batch_size=2", "trainer.global_batch_size=4", "data.image_size=64"),
    "deit_small": (
        "data.batch_size=2",
        "trainer.global_batch_size=4",
        "data.image_size=32",
        "augment.image.policy.size=32",
    ),
    "simple_vit_small": (
        "data.batch_size=2",
        "trainer.global_batch_size=4",
        "data.image_size=32",
        "data.val_fraction=0.2",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("cifar10_resnet20", "resnet50_a3") else pytest.mark.slow)
        for n in SOURCES
    ],
)
def test_two_steps(name: str, here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"experiment={name}", "trainer=cpu", "trainer.max_steps=2", "logger=csv", "data.num_workers=0"]
    if name.startswith("cifar"):
        folder, sides = Path("pictures"), (32, 32)
        words += ["data=imagefolder", "data.root=pictures", "data.image_size=32", "data.crop_ratio=1"]
    else:
        folder, sides = Path("pictures"), (80, 72)
        words += ["data.root=pictures"]
    names = ["n01440764", "n01443537", "n01484850"]
    for split in ("train", "val"):
        for place in range(24):
            write_picture(folder / split / names[place % 3] / f"{place}.JPEG", size=sides, seed=place)
    key = next(key for key in (name, name.partition("_")[0], "cifar") if key in SMALLER)
    words += SMALLER[key]
    if "train_size" in recipe(name).data:
        words += ["data.train_size=48"] if SOURCES[name].sizes[0] != SOURCES[name].sizes[1] else []
    here("train", *words, "hydra.run.dir=run")
    printed = capsys.readouterr().out
    assert "Test of the " in printed
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(bool(torch.isfinite(v).all()) for v in checkpoint["state_dict"].values())
