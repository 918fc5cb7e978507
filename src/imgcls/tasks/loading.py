"""Checkpoints of train: the classifier and the config of its run, for the commands that evaluate it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from imgcls.config import check as configs
from imgcls.errors import UserError
from imgcls.runs.checkpoints import load_content
from imgcls.tasks.classification import ImageClassifier


@with_config(ConfigDict(extra="allow"))
class DataConfig(TypedDict, total=False):
    """The part of a checkpoint's data config that evaluation reads, beside arguments of the data's class."""

    root: str | None
    exclude: str | None
    batch_size: Annotated[int, Field(ge=1)]


@with_config(ConfigDict(extra="allow"))
class RunConfig(TypedDict):
    """The part of a checkpoint's config that evaluation reads."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    cwd: str
    data: DataConfig
    trainer: dict[str, Any]


def load_checkpoint(path: Path, trust: Sequence[str] = ()) -> tuple[ImageClassifier, dict[str, Any]]:
    """Returns the classifier of a checkpoint and the config of its run. Raises UserError: as
    `Task.load_from_checkpoint`; or the config is missing, or of wrong types."""
    content = load_content(path)
    if not isinstance(content.get("config"), dict):
        raise UserError(f"checkpoint={path}: it was not written by imgcls train, and has no config of a run")
    missing: dict[str, Any] = {"seed": 0, "cwd": ".", "data": {}, "trainer": {}}
    config: dict[str, Any] = configs.typed(missing | content["config"], RunConfig, "the checkpoint's config")
    return ImageClassifier.restored(content, path, trust), config
