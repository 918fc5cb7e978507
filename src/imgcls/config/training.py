"""Typed config of a training: what `imgcls train` composes, with the bounds of each value."""

import importlib.util
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from imgcls.config import check as configs
from imgcls.config.optimizer import OptimizerRules
from imgcls.config.words import renamed
from imgcls.errors import UserError

Node = dict[str, Any]  # a call: `_target_` and its keyword arguments
Part = Annotated[Node | None, BeforeValidator(lambda node: node or None)]  # null or false switches it off
Nodes = Annotated[dict[str, Part], BeforeValidator(lambda nodes: nodes or {})]  # parts by name
Metrics = Annotated[str | list[str], Field(min_length=1)]  # the first of several says which epoch is best
Mode = Literal["min", "max"]  # the direction in which a metric is better
Tag = Annotated[str, BeforeValidator(lambda tag: str(tag) if isinstance(tag, int | float) else tag)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def file_name(name: str) -> str:
    """Returns the name of best.ckpt without its ending; a metric's name in it may have a slash."""
    if name in ("last", "previous") or "/" in re.sub(r"\{[^{}]*\}", "", name):
        raise ValueError("expected a name without folders, which is not last or previous")
    return name


PARTS = ("task", "data", "augment", "backbone", "loss", "optimizer", "scheduler", "trainer", "recovery")


class ScheduleEntry(BaseModel):
    """A schedule of torch, with what Lightning's dict around it says of when it goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheduler: Node
    interval: Literal["epoch", "step"] = "epoch"
    frequency: Annotated[int | None, Field(ge=1)] = None
    monitor: str = "val/loss"  # what ReduceLROnPlateau watches


class TrainerConfig(BaseModel):
    """Keys of conf/trainer. The keys of Lightning's Trainer that are named here have bounds: outside of them
    the Trainer would fail late, or do nothing."""

    model_config = ConfigDict(extra="allow", frozen=True)

    max_epochs: Annotated[int | None, Field(ge=-1)] = None
    max_steps: Annotated[int, Field(ge=-1)] = -1
    accumulate_grad_batches: Annotated[int, Field(ge=1)] = 1
    gradient_clip_val: Annotated[float | None, Field(ge=0)] = None
    limit_train_batches: Annotated[int | float, Field(gt=0)] = 1.0
    limit_val_batches: Annotated[int | float, Field(ge=0)] = 1.0
    limit_test_batches: Annotated[int | float, Field(gt=0)] = 1.0
    check_val_every_n_epoch: Annotated[int | None, Field(ge=1)] = 1
    val_check_interval: Annotated[int | float | None, Field(gt=0)] = None
    num_sanity_val_steps: Annotated[int, Field(ge=-1)] = 0
    log_every_n_steps: Annotated[int, Field(ge=0)] = 50
    num_nodes: Annotated[int, Field(ge=1)] = 1
    global_batch_size: Annotated[int | None, Field(ge=1)] = None  # of a step, on all devices together

    def arguments(self) -> Node:
        """Returns the call that builds Lightning's Trainer: the keys that were given."""
        return self.model_dump(exclude_unset=True, exclude={"global_batch_size"})


class RecoveryConfig(BaseModel):
    """Keys of conf/recovery: what every training keeps, shows and gets over, whatever `callbacks` adds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    monitor: str | None = None  # None: the first optimized_metric
    mode: Literal["min", "max"] | None = None  # None: as the metric is better
    filename: Annotated[str, Field(min_length=1), AfterValidator(file_name)] = "best"
    save_top_k: Annotated[int, Field(ge=-1)] = 1
    every_minutes: Annotated[float, Field(gt=0)] = 10.0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    refresh_seconds: Annotated[float, Field(ge=0)] = 0.25
    flush_seconds: Annotated[float, Field(ge=0)] = 60.0
    flush_every_n_steps: Annotated[int | None, Field(ge=1)] = None
    gradient_norm: bool = False


class FirstWeights(BaseModel):
    """Keys of a backbone, beside those of its function, that say where its first weights come from."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    weights: Annotated[str | None, Field(min_length=1)] = None  # a file
    pretrained: bool = False  # the library's
    rename: dict[str, str] | None = None  # parts of the names in the file, and what they are in the network
    preprocessing: Literal["weights", "data"] = "weights"  # who says which images the network sees

    @classmethod
    def read(cls, backbone: Node) -> Self:
        """Returns the keys of a backbone's config. Raises UserError: a value of a wrong type, or
        weights from two places."""
        given = {key: value for key, value in backbone.items() if key in FIRST_WEIGHTS}
        found: Self = configs.typed(given, cls, "backbone")
        if found.pretrained and found.weights is not None:
            both = f"backbone.pretrained=true backbone.weights={found.weights}"
            raise UserError(f"{both}: either the library's weights or those of a file; leave one out")
        return found


FIRST_WEIGHTS = FirstWeights.model_fields.keys()


class LoRA(BaseModel):
    """The key `lora` of a backbone: arguments of peft's LoraConfig."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[list[str] | None, Field(min_length=1)] = None  # names, or ends of names
    use_rslora: bool = False
    use_dora: bool = False

    @classmethod
    def read(cls, backbone: Node) -> Self | None:
        """Returns the adapters of a backbone's config, if it has any. Raises UserError: a key or a value does
        not fit, or peft is not installed."""
        if backbone.get("lora") is None:
            return None
        found: Self = configs.typed(backbone["lora"], cls, "backbone.lora")
        if importlib.util.find_spec("peft") is None:
            advice = "in the clone: pip install -e '.[peft]'"
            raise UserError(f"finetune=lora needs the package peft, which is not installed; {advice}")
        return found


def network_call(backbone: Node) -> Node:
    """Returns the call of a backbone's config, without the keys of first weights that its function does not
    have. Raises UserError: it should be pretrained, and has no such weights; or its adapters do not fit."""
    first = FirstWeights.read(backbone)
    LoRA.read(backbone)
    unused = {*FIRST_WEIGHTS, "lora"} - {"pretrained"}
    call = {key: value for key, value in backbone.items() if key not in unused}
    named, _ = configs.hints_of(configs.locate(call.get("_target_"), "backbone._target_"))
    if "pretrained" not in named:
        call.pop("pretrained", None)
        if first.pretrained:
            advice = "give a file of weights as backbone.weights=FILE"
            raise UserError(f"backbone.pretrained=true: {call['_target_']} has no such weights; {advice}")
    return call


class TrainConfig(BaseModel):
    """Keys of conf/train.yaml. The parts are still calls (`Node`), whose names and types are checked."""

    model_config = ConfigDict(frozen=True)

    task: Node
    data: Node
    augment: Node
    backbone: Node
    loss: Node
    optimizer: Node
    scheduler: Node
    trainer: TrainerConfig
    recovery: RecoveryConfig
    callbacks: Nodes = Field(default_factory=dict)
    logger: Nodes = Field(default_factory=dict)
    names: dict[str, Any]
    seed: Seed
    tags: list[Tag] = Field(default_factory=list)
    run_dir: str
    test: bool
    tune: Literal["lr", "batch_size"] | None
    channels_last: bool
    compile: bool
    metrics: Nodes = Field(default_factory=dict)
    optimized_metric: Metrics
    optimized_mode: Mode | list[Mode] | None = None
    resume: str | None
    overwrite: bool
    record: Node  # all of the config, plain: config.yaml, the checkpoints and W&B get it

    @classmethod
    def read(cls, plain: Node) -> Self:
        """Returns the typed form of a plain config. Raises UserError for what is missing or does not fit."""
        for part in PARTS:
            if not (plain.get(part) or {}).keys() - {*FIRST_WEIGHTS, "lora"}:
                raise UserError(f"{part}: nothing is chosen; write {part}=…")
        backbone = network_call(plain["backbone"])
        if "scheduler" in plain["scheduler"]:
            configs.typed(plain["scheduler"], ScheduleEntry, "scheduler")
        trainer = {k: v for k, v in plain["trainer"].items() if (k, v) != ("precision", "auto")}
        for key in trainer:
            if advice := renamed(f"trainer.{key}"):
                raise UserError(f"trainer.{key}: there is no such key; {advice}")
        rules = OptimizerRules.read(plain["optimizer"])
        trainer.pop("global_batch_size", None)
        optimizer = rules.without(plain["optimizer"])
        configs.check({**plain, "backbone": backbone, "trainer": trainer, "optimizer": optimizer})
        given = [node or {} for node in (plain.get("callbacks") or {}).values()]
        if plain["backbone"].get("lora") is not None and all(one.get("only") != "adapters" for one in given):
            fault = "backbone.lora adds adapters, but all weights would learn beside them"
            raise UserError(f"{fault}; write finetune=lora, or leave backbone.lora out")
        return configs.typed({**plain, "record": plain}, cls, "")

    @property
    def watched_by_schedule(self) -> tuple[str | None, str | None]:
        """The metric that the schedule watches, and the direction in which it takes it to be better."""
        node = self.scheduler.get("scheduler", self.scheduler)
        watches = "monitor" in self.scheduler or node.get("_target_", "").endswith(".ReduceLROnPlateau")
        mode = node.get("mode", "min")  # as torch and ours have it
        return (self.scheduler.get("monitor", "val/loss"), mode) if watches else (None, None)

    @property
    def all_metrics(self) -> list[str]:
        """The metrics that are optimised; the first says which epoch is best."""
        return [self.optimized_metric] if isinstance(self.optimized_metric, str) else self.optimized_metric

    @property
    def first_metric(self) -> str:
        return self.all_metrics[0]

    def mode_of(self, metric: str, better: Mapping[str, Mode | None]) -> Mode | None:
        """Returns "min" or "max", the direction in which a metric is better: what the config says of an
        optimised one, else what `better` has for it."""
        given = self.optimized_mode
        modes = given if isinstance(given, list) else [given] * len(self.all_metrics)
        return dict(zip(self.all_metrics, modes, strict=False)).get(metric) or better.get(metric)
