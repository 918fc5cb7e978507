"""Help: the groups and keys of a verb, or one of them, with what the files of conf/ and the types say.

Nothing that takes long is imported: types and docstrings are read from source files (signatures.py).
"""

import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from imgcls.config.conf_files import Place, choices, comments, conf_folders, files, header, places, root_keys
from imgcls.config.paths import CONF
from imgcls.config.signatures import Parameter, parameters
from imgcls.config.words import our_word
from imgcls.errors import UserError, nearest

INDENT = 40
LISTED = ("callbacks", "logger", "metrics")  # groups of which several files are chosen
PLUMBING = ("run_dir", "cwd", "names", "job", "hydra")  # what a run says to itself
SCHEMAS = {
    "": "imgcls.config.training.TrainConfig",
    "trainer": "imgcls.config.training.TrainerConfig",
    "recovery": "imgcls.config.training.RecoveryConfig",
    "augment": "imgcls.augment.settings.Augment",
    "augment.mixup": "imgcls.augment.settings.Mix",
    "augment.cutmix": "imgcls.augment.settings.Mix",
    "backbone": "imgcls.config.training.FirstWeights",
    "backbone.lora": "imgcls.config.training.LoRA",
}


class Key(NamedTuple):
    name: str  # dotted
    value: str
    takes: str
    phrase: str
    place: Place | None  # None: Hydra or a default puts it there


def text_of(value: Any) -> str:
    """Returns a value as it is written on a command line."""
    plain = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    return re.sub(r"\n\.\.\.$", "", plain).replace(", ", ",")


def composed(verb: str, overrides: Sequence[str]) -> DictConfig:
    """Composes the config of a verb, as Hydra does for a run, with what Hydra knows of it."""
    with initialize_config_dir(str(CONF), job_name=verb):
        return compose(verb, list(overrides), return_hydra_config=True)


def keys(verb: str, config: DictConfig) -> list[Key]:
    """Returns the keys of a composed config, with all that is known of each."""
    where = dict[str, Place]()
    chosen = [*config.hydra.runtime.choices.items()]
    chosen += [(group, name) for group in LISTED for name in choices(group)]  # Hydra does not say which
    for group, choice in chosen:
        if isinstance(choice, str) and not group.startswith("hydra/"):
            where |= places(group, choice)
    for root in ("train", verb) if verb == "bench" else (verb,):
        where |= {
            name: place for name, place in comments(files("")[root]) if name not in where or place.comment
        }
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    found = _leaves({k: v for k, v in plain.items() if k not in PLUMBING}, "", where)
    kinds = ("run", "sweep") if verb in ("train", "bench") else ("run",)
    dirs = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(dirs, dict)
    return [
        *found,
        *(
            Key(f"hydra.{kind}.dir", dirs[kind]["dir"], "text", f"the directory of a {kind}", None)
            for kind in kinds
        ),
    ]


def _leaves(node: dict[Any, Any], where: str, found: dict[str, Place]) -> Iterator[Key]:
    """Yields the keys below a place of the config; `found` says where files set them."""
    known = parameters(SCHEMAS[where]) if where in SCHEMAS else {}
    if isinstance(node.get("_target_"), str):
        known = parameters(node["_target_"]) | known
    for key, value in node.items():
        name = f"{where}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from _leaves(value, name, found)
            continue
        parameter, place = known.get(str(key), Parameter("", "")), found.get(name)
        phrase = (place.comment if place else "") or ("" if name == key else parameter.phrase)
        takes = "" if key == "_target_" else parameter.takes or _kind(value)
        yield Key(name, text_of(value), takes, phrase, place)


def _kind(value: Any) -> str:
    kinds = {bool: "true, false", int: "integer", float: "number", list: "list", dict: "keys and values"}
    return kinds.get(type(value), "")


def groups_of(verb: str, config: DictConfig) -> list[str]:
    """Returns the groups that a verb takes."""
    taken = {*config.hydra.runtime.choices, *LISTED} - {"local"}
    return [group for group in root_keys(verb, conf_folders()) if group in taken and choices(group)]


def verb_help(verb: str, overrides: Sequence[str]) -> str:
    """Returns the help of a verb: its groups with their choices, its keys as they are composed."""
    config, lines = composed(verb, overrides), _wrapped("", header(files("")[verb]))
    groups = groups_of(verb, config)
    if groups:
        lines += ["", "Choices, given as group=name; * is in use:"]
    for group in groups:
        used = config.hydra.runtime.choices.get(group)
        used = used if isinstance(used, list) else [used]
        named = " ".join(f"*{name}" if name in used else name for name in choices(group))
        lines += _wrapped(f"  {group:<11}", named)
    lines += ["", "Keys, given as key=value; a + in front adds one that is not there:"]
    found = [key for key in keys(verb, config) if not (key.value == "{}" and key.name in groups)]
    top = ""
    for key in sorted(found, key=lambda key: "." in key.name):
        if "." in key.name and key.name.partition(".")[0] != top:
            top = key.name.partition(".")[0]
            lines.append("")
        left = f"  {key.name}={key.value}"
        lines += _wrapped(f"{left:<{INDENT}}", about(key), INDENT)
    many = "-m with values split by commas runs one job for each. " if verb in ("train", "bench") else ""
    more = f"imgcls help KEY says more of one; imgcls {verb} --cfg job shows the config as YAML."
    return "\n".join([*lines, "", *_wrapped("", many + more)])


def key_help(name: str, verbs: Sequence[str]) -> str:
    """Returns what a key is, what it takes and where it is set; of a group, its choices. Raises UserError:
    there is no such key."""
    roots = [verb for verb in verbs if verb in files("")]
    if name in (groups := groups_of("train", composed("train", []))):
        return _group_help(name)
    known = set[str]()
    for verb, chosen in chain([("train", "")], _choosing(name, groups), ((verb, "") for verb in roots)):
        found = {key.name: key for key in keys(verb, composed(verb, [chosen] if chosen else []))}
        if asked := [key for key in found.values() if _within(key.name, name)]:
            others = [other for other in roots if other not in (verb, "bench") and _has(other, asked[0].name)]
            return "\n".join(line for key in asked for line in _key_help(key, [verb, *others], chosen))
        known |= found.keys()
    raise UserError(f"help {name}: there is no such key; {our_word('train', name) or nearest(name, known)}")


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _choosing(name: str, groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields what to choose in imgcls train so that a key is there; first the files that give it a value."""
    found = list[tuple[bool, str]]()
    for group in groups:
        for choice in choices(group):
            if given := [place for key, place in places(group, choice).items() if _within(key, name)]:
                valued = given[0].file.stem == choice and given[0].value not in ("null", "???")
                found.append((not valued, f"{group}=[{choice}]" if group in LISTED else f"{group}={choice}"))
    yield from (("train", chosen) for _, chosen in sorted(found))


def _has(verb: str, name: str) -> bool:
    """Returns whether a verb's root file, or the choice that is its default, has a key."""
    group, root = name.partition(".")[0], dict(comments(files("")[verb]))
    choice = root_keys(verb, conf_folders()).get(group)
    return name in root or (isinstance(choice, str) and name in places(group, choice))


def _key_help(key: Key, verbs: list[str], chosen: str) -> list[str]:
    group = key.name.partition(".")[0]
    of_choices = {choice: places(group, choice).get(key.name) for choice in choices(group)}
    others = {choice: place.value for choice, place in of_choices.items() if place}
    many = ["-m"] if group in ("sweep", "launcher") else []
    value = "…" if key.value in ("null", "???") else key.value
    rows = {
        "what": key.phrase,
        "takes": key.takes,
        "set in": _written(key.place) if key.place else "",
        f"{group}=": ", ".join(f"{choice}: {value}" for choice, value in others.items()),
        "write": shlex.join(["imgcls", verbs[0], *many, *filter(None, [chosen]), f"{key.name}={value}"]),
        "also in": ", ".join(verbs[1:]),
    }
    if len(set(others.values())) < 2:
        rows.pop(f"{group}=")
    lines = (line for label, text in rows.items() if text for line in _wrapped(f"  {label:<12}", text))
    return [f"{key.name}={key.value}", *lines]


def _written(place: Place) -> str:
    folder = next(
        (folder for folder in conf_folders() if place.file.is_relative_to(folder)), place.file.parent
    )
    return f"conf/{place.file.relative_to(folder)}, line {place.line}"


def _group_help(group: str) -> str:
    """Returns the choices of a group, with what their files say of them."""
    lines = [f"{group}=NAME, one of (imgcls train {group}=NAME --help shows its keys):"]
    for name, path in sorted(files(group).items()):
        lines += _wrapped(f"  {name:<22}", header(path) or _target(path), 24)
    return "\n".join(lines)


def _target(path: Path) -> str:
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return str(content.get("_target_", ""))


def about(key: Key) -> str:
    """Returns what a key is, and in brackets what it takes."""
    takes = f"[{key.takes}]" if key.takes else ""
    return " ".join(filter(None, (textwrap.shorten(key.phrase, 160, placeholder=" …"), takes)))


def _wrapped(left: str, text: str, indent: int | None = None) -> list[str]:
    """Returns a text in lines beside what stands left of it."""
    width, indent = min(shutil.get_terminal_size().columns, 140), len(left) if indent is None else indent
    fits, gap = len(left) <= indent, " " * indent
    first = left if fits else gap
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=gap, break_on_hyphens=False)
    return (lines or [left.rstrip()]) if fits else [left, *lines]
