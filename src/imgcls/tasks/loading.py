"""Checkpoints of train, read again: the task, built from what is allowed alone, and the config of its run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from imgcls.backbones.build import rebuild_network
from imgcls.config import check as configs
from imgcls.config.allowed import allowed, allowed_metric
from imgcls.errors import UserError
from imgcls.spec import DataSpec
from imgcls.tasks.network import NetworkModule

T = TypeVar("T", bound=NetworkModule)
FIRST_TASK = "imgcls.tasks.classification.ImageClassifier"  # of checkpoints that name none
OF_TRAINING = ("loss", "optimizer", "scheduler", "augment", "fused", "compile")  # evaluation needs none


@with_config(ConfigDict(extra="allow"))
class DataConfig(TypedDict, total=False):
    """The part of a checkpoint's data config that evaluation reads, beside arguments of the data's class."""

    root: str | None
    file: str | None
    exclude: str | None
    batch_size: Annotated[int, Field(ge=1)]


@with_config(ConfigDict(extra="allow"))
class CarriedConfig(TypedDict, total=False):
    """The part of a checkpoint's trainer config that evaluation takes over: plain values, never calls."""

    accelerator: str | None
    precision: str | int | None
    benchmark: bool | None
    deterministic: bool | Literal["warn"] | None
    limit_test_batches: int | float | None


@with_config(ConfigDict(extra="allow"))
class RunConfig(TypedDict):
    """The part of a checkpoint's config that evaluation reads."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    cwd: str
    data: DataConfig
    trainer: CarriedConfig


def restore(kind: Callable[..., T], content: Mapping[str, Any], path: Path, trust: Sequence[str] = ()) -> T:
    """Returns the task of a checkpoint's content, in evaluation mode on the CPU; it has no loss and no
    optimizer. Raises UserError: the checkpoint names a task, network or metric that is not allowed, and
    nothing of it was run; its task is no `kind`; or its weights are of another network."""
    named = content.get("task", FIRST_TASK)
    found: Any = allowed(named, "task", trust)
    build: Callable[..., T] = found
    if not (isinstance(found, type) and isinstance(kind, type) and issubclass(found, kind)):
        raise UserError(f"checkpoint={path}: its task is {named}; expected a {kind.__name__}")
    try:
        parameters = content["hyper_parameters"]
        spec: DataSpec = configs.typed(dict(parameters["spec"]), DataSpec, "spec")
        given = {key: value for key, value in parameters.items() if key not in OF_TRAINING}
        where = "the checkpoint's hyper_parameters"
        plain = configs.arguments({"_target_": named, **given, "spec": asdict(spec)}, where, found)
        network_of, metric_of = partial(rebuild_network, trust=trust), partial(allowed_metric, trust=trust)
        task: T = build(**plain, network_of=network_of, metric_of=metric_of)
        state = content["state_dict"]  # also of what training alone has, such as class weights
        own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
        task.network.load_state_dict(own)
        task.on_load_checkpoint(dict(content))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        fault = f"its weights are of another network than its settings say ({reason})"
        raise UserError(f"checkpoint={path}: {fault}") from error
    return task.eval()


def config_of(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the config of the run that wrote a checkpoint. Raises UserError: it is missing, or of wrong
    types."""
    if not isinstance(content.get("config"), dict):
        raise UserError(f"checkpoint={path}: it was not written by imgcls train, and has no config of a run")
    missing: dict[str, Any] = {"seed": 0, "cwd": ".", "data": {}, "trainer": {}}
    config: dict[str, Any] = configs.typed(missing | content["config"], RunConfig, "the checkpoint's config")
    return config
