"""Hub: networks of timm in a repository of a hub or in a folder, a config.json and a file of weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.config import check as configs
from imgcls.config.training import FIRST_WEIGHTS
from imgcls.errors import UserError

SOURCES = ("hf-hub:", "local-dir:")  # begin the names of such networks, as in timm
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def resolved(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a backbone's config in which the network of a hub's repository or a folder is named by its
    architecture, and its weights by their file, so that a checkpoint needs neither hub nor folder. Raises
    UserError: the files can't be had, or are none of timm's."""
    name = str(backbone.get("name"))
    source = next((source for source in SOURCES if name.startswith(source)), None)
    if source is None or "timm" not in str(backbone.get("_target_")):
        return dict(backbone)
    folder = Path(name.removeprefix(source)).expanduser()
    try:
        if source == "hf-hub:":
            folder = fetched(name.removeprefix(source), bool(backbone.get("pretrained")))
        config = read_json(folder / "config.json")
        architecture, options = config["architecture"], plain_options(config.get("model_args") or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        expected = "expected a config.json with an architecture of timm's"
        raise UserError(f"backbone.name={name}: {reason}; {expected}") from error
    found = {**options, **backbone, "name": architecture, "pretrained": False}
    if backbone.get("pretrained") and not backbone.get("weights"):
        path = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
        if path is None:
            raise UserError(f"backbone.name={name}: there is no {' or '.join(WEIGHTS)} in {folder}")
        found["weights"] = str(path)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a config.json. Raises OSError or ValueError: it is not there, or no object."""
    try:
        found = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("its lists lie too deep in each other") from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__}, no object")
    return found


def plain_options(options: Any) -> dict[str, Any]:
    """Returns options of a network that a file says, without those of the data's shape. Raises ValueError:
    they would be a call, or say what a user says alone."""
    if not isinstance(options, dict):
        raise ValueError(f"its model_args are {type(options).__name__}, no object")
    for key, value in options.items():
        if key.startswith("_") or key in FIRST_WEIGHTS or configs.has_nodes(value):
            raise ValueError(f"its model_args have {key!r}, which a file may not say; nothing was called")
    return {
        key: value for key, value in options.items() if key not in ("num_classes", "in_chans", "img_size")
    }


def fetched(repository: str, weights: bool) -> Path:
    """Returns the folder with the files of a repository, `user/name` or `user/name@revision`. Raises OSError
    or ValueError: they can't be had."""
    from huggingface_hub import snapshot_download  # timm needs it, too
    from huggingface_hub.errors import LocalEntryNotFoundError

    identifier, _, revision = repository.partition("@")
    files = ["config.json", *(WEIGHTS if weights else ())]
    try:
        return Path(snapshot_download(identifier, revision=revision or None, allow_patterns=files))
    except LocalEntryNotFoundError as error:
        cause = error.__cause__ or error.__context__ or type(error).__name__
        advice = "connect, or give the folder of a copy as backbone.name=local-dir:FOLDER"
        fault = f"the hub can't be reached, and there is no copy here ({cause})"
        raise UserError(f"backbone.name=hf-hub:{repository}: {fault}; {advice}") from error
