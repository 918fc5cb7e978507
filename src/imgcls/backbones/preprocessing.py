"""Preprocessing: which images the first weights of a network expect, as their library or their file says."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imgcls.backbones.hub import WEIGHTS, read_json
from imgcls.backbones.weights import described
from imgcls.config import check as configs
from imgcls.config.training import FirstWeights, Node
from imgcls.errors import UserError
from imgcls.processes import rank
from imgcls.spec import DataSpec, checked_size

log = logging.getLogger(__name__)
FIELDS = ("mean", "std", "interpolation", "crop_ratio", "fit", "image_size")  # of a DataSpec
LIBRARIES = ("timm.", "torchvision.models.")
FITS = {"center": "crop", "squash": "squash", "border": "pad"}  # timm's words for ours


class Expected(NamedTuple):
    """The fields of a `DataSpec` that weights expect, words for where this is known from, and the number of
    classes that they learnt."""

    origin: str
    fields: dict[str, Any]
    classes: int


def of_weights(backbone: Node, testing: bool = False) -> Expected | None:
    """Returns what the first weights of a backbone's config expect: those of the library; of a checkpoint of
    train or a file of export; or of a file for a name of timm's that says which weights it means, such as
    tf_efficientnet_lite0.in1k. None: there are none, or their origin is not known.

    Args:
        backbone: conf/backbone, with the keys of `FirstWeights`.
        testing: as for a test: some weights expect larger images there than in training.
    """
    first = FirstWeights.read(backbone)
    if first.weights is None:
        return of_library(backbone, testing) if first.pretrained else None
    path = Path(first.weights)
    if path.name in WEIGHTS and (config := path.with_name("config.json")).is_file():
        return of_folder(config, testing)
    if spec := described(path):
        fields = {key: spec[key] for key in FIELDS if key in spec}
        return Expected(first.weights, checked(first.weights, fields), len(spec["class_names"]))
    return of_library(backbone, testing) if "." in library_name(backbone) else None


def of_library(backbone: Node, testing: bool = False) -> Expected | None:
    """Returns what the library's weights for the network of a backbone's config expect; None: it has none."""
    name, target = library_name(backbone), str(backbone.get("_target_"))
    if not name:
        return None
    if "torchvision" in target:
        return of_torchvision(name)
    return of_timm(name, testing, backbone.get("pretrained_cfg_overlay") or {})


def library_name(backbone: Node) -> str:
    """Returns the name by which timm or torchvision know the network; "" for one of another package."""
    target = str(backbone.get("_target_"))
    if not target.startswith(("imgcls.backbones.timm.", "imgcls.backbones.torchvision.", *LIBRARIES)):
        return ""
    given = backbone.get("name") or backbone.get("model_name")
    return str(given or (target.rpartition(".")[2] if target.startswith(LIBRARIES) else ""))


def of_timm(name: str, testing: bool, overlay: Node) -> Expected | None:
    import timm

    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # timm has no such weights: it says so where it makes the network
        return None
    if config is None or not config.has_weights:
        return None
    tagged = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    return Expected(f"timm's {tagged}", fields_of(config.to_dict() | overlay, testing), config.num_classes)


def of_folder(path: Path, testing: bool = False) -> Expected:
    """Returns what the weights beside a config.json of timm's expect. Raises UserError: it is another's."""
    try:
        config = read_json(path)
        pretrained = config.get("pretrained_cfg", config)  # an older form has all in one
        if missing := {"mean", "std", "input_size"} - pretrained.keys():  # timm would take defaults
            raise KeyError(f"it has no {min(missing)}")
        classes = config.get("num_classes", pretrained.get("num_classes", 0))
        fields = checked(str(path), fields_of(pretrained, testing))
        return Expected(str(path), fields, int(classes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = str(error).strip("'") or type(error).__name__
        fault = f"{path} beside the weights is no config.json of timm's ({reason})"
        raise UserError(f"{fault}; move the weights out of its folder") from error


def fields_of(pretrained: Node, testing: bool) -> dict[str, Any]:
    """Returns the fields of a spec that a configuration of timm's weights says."""
    from timm.data import resolve_data_config

    found = resolve_data_config(pretrained_cfg=pretrained, use_test_size=testing)
    fields = {"mean": found["mean"], "std": found["std"], "interpolation": found["interpolation"]}
    fields |= {"crop_ratio": found["crop_pct"], "fit": FITS[found["crop_mode"]]}
    return fields | {"image_size": checked_size(found["input_size"][-2:])}


def checked(origin: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a spec that a file says, with the types of a spec. Raises UserError: they are
    none; what is written in their place, such as a call, would be built with the data."""
    lists = [fields[key] for key in ("mean", "std") if isinstance(fields.get(key), list | tuple)]
    channels = max(map(len, lists), default=3)
    shape = {"class_names": (), "channels": channels, "image_size": 1, "mean": [0.5], "std": [0.5]}
    try:
        spec: DataSpec = configs.typed({**shape, **fields}, DataSpec, "preprocessing")
    except UserError as error:
        raise UserError(
            f"{origin} says images that can't be: {error}; give weights from elsewhere"
        ) from error
    return {key: getattr(spec, key) for key in fields}


def of_torchvision(name: str) -> Expected | None:
    import torchvision.models as models

    if name not in models.list_models(module=models):
        return None
    weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    preset = weights.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    fields = {"mean": preset.mean, "std": preset.std, "interpolation": preset.interpolation.value}
    fields |= {"crop_ratio": crop / resize, "fit": "crop", "image_size": crop}
    return Expected(f"torchvision's {name}, {weights.name}", fields, len(weights.meta["categories"]))


def prepared_for(backbone: Node, data: Node, testing: bool = False) -> Node:
    """Returns the config of the data with images as the first weights of the backbone expect them, where it
    says null, and logs a line of what was taken and what the config says otherwise. A source says what it
    takes (`of_weights`): one of small images no size, whose gain and cost are for the user to weigh."""
    off = FirstWeights.read(backbone).preprocessing == "data"
    if off or (expected := of_weights(backbone, testing)) is None:
        return data
    kind = configs.locate(data.get("_target_"), "data._target_")
    named, _ = configs.hints_of(kind)
    keys = [key for key in FIELDS if key in named and key in expected.fields]
    decided = getattr(kind, "of_weights", ())
    taken = {key: plain(expected.fields[key]) for key in keys if key in decided and data.get(key) is None}
    kept = [key for key in keys if data.get(key) is not None and differs(data[key], expected.fields[key])]
    lines = [f"preprocessing: {said(taken)}, as the weights expect ({expected.origin})"] if taken else []
    for key in kept:
        lines.append(f"data.{key}={shown(data[key])} is given (the weights: {shown(expected.fields[key])})")
    if lines and "image_size" in keys and data.get("image_size") is None and "image_size" not in taken:
        lines.append(f"image_size is the data's (the weights: {shown(expected.fields['image_size'])})")
    if lines and rank() == 0:
        log.info("%s", "; ".join(lines))
    return {**data, **taken}


def note_difference(backbone: Node, spec: DataSpec, testing: bool = False) -> None:
    """Warns where a file of weights of unknown origin may expect other images: the library's weights do."""
    first = FirstWeights.read(backbone)
    if first.weights is None or first.preprocessing == "data" or of_weights(backbone) is not None:
        return
    if (expected := of_library(backbone, testing)) is None:
        return
    other = {key: value for key, value in expected.fields.items() if differs(getattr(spec, key), value)}
    if other and rank() == 0:
        text = "%s does not say what images it expects; %s expects others than this data gives: %s"
        keys = " ".join(f"data.{key}={shown(value)}" for key, value in other.items())
        log.warning(text, first.weights, expected.origin, keys)


def differs(mine: Any, theirs: Any) -> bool:
    """Says whether the data has another value than expected; one number for all channels is repeated."""
    if not isinstance(theirs, list | tuple):
        return bool(mine != theirs)
    if not isinstance(mine, list | tuple) or len(mine) not in (1, len(theirs)):
        return True
    repeated = list(mine) * (len(theirs) // len(mine))
    if not all(isinstance(number, int | float) for number in repeated):
        return True  # whoever builds the data says it
    return any(abs(a - b) > 1e-6 for a, b in zip(repeated, theirs, strict=True))


def plain(value: Any) -> Any:
    """Returns a value as configs have it."""
    return list(value) if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def said(fields: Mapping[str, Any]) -> str:
    """Returns words for fields of a spec."""
    return ", ".join(f"{key} {shown(value)}" for key, value in fields.items())
