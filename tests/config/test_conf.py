"""Every file in conf/ composes, passes the checks, and builds what it names."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from support.composed import CONF, composed, files, training
from support.sets import check_set

from imgcls.backbones.build import build_network
from imgcls.callbacks.finetune import Finetune
from imgcls.commands.build import added_callbacks, build_callbacks, build_task
from imgcls.commands.eval import EvalConfig
from imgcls.config import check as configs
from imgcls.config.build import build
from imgcls.config.training import RecoveryConfig, TrainConfig
from imgcls.engine.build import build_data, build_trainer
from imgcls.engine.checkpoint import WholeFiles
from imgcls.errors import UserError
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.metrics import Better

NEEDED = {  # what a user must give with a choice
    "data=imagefolder": ["data.root={folder}", "data.image_size=32"],
    "backbone=torchvision": ["backbone.name=resnet18"],
    "backbone=timm": ["backbone.name=resnet18"],
    "optimizer=torch": ["optimizer._target_=torch.optim.NAdam"],
    "loss=torch": ["loss._target_=torch.nn.MultiMarginLoss"],
    "optimizer=timm": ["optimizer.opt=adan"],
}  # fmt: skip
ELSEWHERE = {"huggingface", "imagenet", "packed", "streaming", "table"}  # each is tested beside its source
SECOND = [  # checkpoint of one's own
    "+callbacks.lowest._target_=lightning.pytorch.callbacks.ModelCheckpoint",
    "+callbacks.lowest.monitor=val/loss",
]


def test_every_group_is_known_here() -> None:
    groups = {p.parent.relative_to(CONF).parts[0] for p in CONF.rglob("*.yaml") if p.parent != CONF}
    built = {"data", "augment", "backbone", "loss", "optimizer", "scheduler", "trainer", "recovery"}
    built |= {"callbacks", "logger", "finetune", "task", "metrics"}
    assert groups - built == {
        "experiment",
        "debug",
        "hydra",
        "sweep",
        "launcher",
    }  # the last two: test_sweep.py


@pytest.mark.parametrize("name", sorted({*files("data")} - ELSEWHERE))
def test_data(name: str, folder: Path) -> None:
    overrides = [text.format(folder=folder) for text in NEEDED.get(f"data={name}", [])]
    # Some need a download; their files are tested elsewhere.
    check_set(name, *overrides, read=name not in ("fashion_mnist", "cifar10", "cifar100"))


@pytest.mark.parametrize("name", files("backbone"))
def test_backbone(name: str) -> None:
    config = training(f"backbone={name}", *NEEDED.get(f"backbone={name}", []))
    size = 299 if name == "inception_v3" else 224 if name in ("torchvision", "timm") or "_" in name else 32
    with torch.device("meta"):
        network = build_network(config.backbone, num_classes=7, in_channels=3, image_size=size)
    head = network.get_submodule(network.head_names[0])  # type: ignore[index, arg-type]
    assert any(True for _ in head.parameters())


@pytest.mark.parametrize(
    "choice", [f"{g}={n}" for g in ("augment", "loss", "optimizer", "scheduler") for n in files(g)]
)
def test_parts_of_the_classifier(choice: str) -> None:
    short = ["callbacks=[]", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    config = training(choice, *NEEDED.get(choice, []), *short)
    data = build_data(config.data, config.augment, seed=0)
    classifier = build_task(config, data)
    before = classifier.network.get_parameter("head.weight").detach().clone()
    unseen = {"enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = build_trainer(config.trainer.model_copy(update=unseen), [], [], Path())
    trainer.fit(classifier, datamodule=data)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert not torch.equal(before, classifier.network.get_parameter("head.weight"))


@pytest.mark.parametrize("name", files("trainer"))
def test_trainer(name: str) -> None:
    config = training(f"trainer={name}")
    here = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(config.record["trainer"]["accelerator"], True):
        with pytest.raises(UserError, match=r"trainer\.accelerator="):
            build_trainer(config.trainer, [], [], Path())
        return
    trainer = build_trainer(config.trainer, [], [], Path())
    assert trainer.max_epochs == 20 and trainer.world_size == (2 if name == "ddp_cpu" else 1)


def test_plugins_of_the_trainer_are_kept() -> None:
    """Beside the one that writes whole files."""
    node = "{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}"
    config = training("trainer=cpu", f"+trainer.plugins=[{node}]")
    connector = build_trainer(config.trainer, [], [], Path())._accelerator_connector
    assert isinstance(connector._cluster_environment_flag, LightningEnvironment)
    assert isinstance(connector.checkpoint_io, WholeFiles)


@pytest.mark.parametrize("name", files("finetune"))
def test_finetune(name: str) -> None:
    config = training(f"finetune={name}")
    assert ("finetune" in config.callbacks) == (name != "none")
    if name != "none":
        assert isinstance(build(config.callbacks["finetune"] or {}, "callbacks.finetune"), Finetune)


@pytest.mark.parametrize("name", files("callbacks"))
def test_callbacks(name: str) -> None:
    given = []
    if name == "distillation":
        config = training("backbone.width=4")
        teacher = build_task(config, build_data(config.data, config.augment, 0))
        torch.save(
            {"state_dict": teacher.state_dict(), "hyper_parameters": dict(teacher.hparams), "config": {}},
            "t.ckpt",
        )
        given = ["callbacks.distillation.teacher=t.ckpt"]
    config = training(f"callbacks=[{name}]", *given)
    assert len(added_callbacks(config, {"val/top1": "max"})) == len(config.callbacks) == 1


def logged(config: TrainConfig) -> dict[str, Better]:
    spec = DataSpec(["a", "b"], 1, 8, [0.5], [0.5])
    return ImageClassifier.measures(spec).logged(config.metrics)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ("val/top1", "max")),
        (["optimized_metric=val/loss"], ("val/loss", "min")),
        (["optimized_metric=[val/f1,val/loss]"], ("val/f1", "max")),
        (["recovery.monitor=val/calibration_error"], ("val/calibration_error", "min")),
    ],
)
def test_the_kept_checkpoint_follows_the_metric(given: list[str], expected: tuple[str, str]) -> None:
    config = training(*given)
    keeper = build_callbacks(config, logged(config))[0]
    assert isinstance(keeper, ModelCheckpoint) and (keeper.monitor, keeper.mode) == expected


def test_recovery() -> None:
    """The file has every key, with the values that hold without it."""
    assert composed()["recovery"] == RecoveryConfig().model_dump()


ALWAYS = ["ModelCheckpoint", "LastCheckpoint", "Throughput", "StepCurves", "EpochProgress"]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], []),
        (["callbacks=[]"], []),
        (["callbacks=ema"], ["EMA"]),
        (["callbacks=[ema,early_stopping]", "finetune=gradual"], ["EMA", "EarlyStopping", "Finetune"]),
        (["callbacks=ema", *SECOND], ["EMA", "ModelCheckpoint"]),
    ],
)
def test_callbacks_add_to_what_is_always_there(given: list[str], added: list[str]) -> None:
    settings = ["recovery.every_minutes=3", "recovery.refresh_seconds=2", "trainer.log_every_n_steps=7"]
    config = training(*given, *settings)
    built = build_callbacks(config, logged(config))
    assert [type(callback).__name__ for callback in built] == ALWAYS + added
    _, last, _, curve, progress, *_ = built
    assert (last.every_minutes, curve.every_n_steps, progress.refresh_seconds) == (3, 7, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", files("logger"))
def test_logger(name: str, tmp_path: Path) -> None:
    extra = [f"logger.mlflow.tracking_uri=sqlite:///{tmp_path}/mlflow.db"] if name == "mlflow" else []
    config = training(f"logger=[{name}]", *extra)
    Path("run").mkdir()
    logger = build(config.logger[name] or {}, f"logger.{name}")
    logger.log_hyperparams(config.record)
    logger.log_metrics({"val/top1": 0.5, "train/loss": 1.0, "epoch": 0}, 1)
    logger.finalize("success")
    if name == "wandb":
        logger.experiment.finish()
    assert any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("choice", [f"{g}={n}" for g in ("experiment", "debug") for n in files(g)])
def test_overlays(choice: str, folder: Path) -> None:
    text = (CONF / f"{choice.replace('=', '/')}.yaml").read_text()
    own = "folder" in choice or "/data: imagenet" in text
    config = training(choice, *([f"data.root={folder}"] if own else []))
    unvalidated = config.data["val_fraction"] == 0
    assert config.optimized_metric == ("train/loss" if unvalidated else "val/top1")


def test_eval() -> None:
    config = composed("checkpoint=x", "data=digits", root="eval")
    configs.check({"data": {k: v for k, v in config["data"].items() if k not in ("root", "file")}})
    assert {field.name for field in fields(EvalConfig)} == set(config)


@pytest.mark.parametrize("word", ["null", "false", "0"])
def test_a_part_is_switched_off(word: str) -> None:
    config = training("callbacks=[ema,early_stopping]", f"callbacks.ema={word}", f"logger.csv={word}")
    assert config.callbacks["ema"] is None and config.logger["csv"] is None
    assert config.callbacks["early_stopping"] is not None
