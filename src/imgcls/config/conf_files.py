"""Files of conf/: the folders that they lie in, the choices of a group, the keys of a verb's root config."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from imgcls.config.paths import CONF
from imgcls.config.project import own_project


def conf_folders() -> list[Path]:
    """Returns the folders of config files, in the order in which Hydra looks in them: a file of the project
    comes before ours of the same name, because one that is not read would be a riddle."""
    project = own_project()
    return [project.conf, CONF] if project and project.conf else [CONF]


def files(group: str) -> dict[str, Path]:
    """Returns the files of a group by choice."""
    found = (path for folder in reversed(conf_folders()) for path in (folder / group).glob("*.yaml"))
    return {path.stem: path for path in found}


def choices(group: str) -> list[str]:
    return sorted(files(group))


def root_keys(name: str, folders: list[Path]) -> dict[str, Any]:
    """Returns the top-level keys of a root config and of those in its defaults, with their values, and the
    groups with their choices. A file that is no config has none."""
    path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    try:
        root = yaml.safe_load(path.read_text()) if path else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # type: ignore[attr-defined]
        root = None
    keys = {str(key): value for key, value in root.items()} if isinstance(root, dict) else {}
    entries = keys.pop("defaults", None)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, str) and entry not in ("_self_", name):
            keys |= root_keys(entry.strip("/"), folders)
        elif isinstance(entry, dict):  # {"optional local": default}, {"data@validation": digits}
            groups = {str(group).split()[-1].rpartition("@")[2].lstrip("/"): entry[group] for group in entry}
            keys |= {re.split("[./]", group)[0]: choice for group, choice in groups.items()}
    return keys


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast


class Place(NamedTuple):
    """Where a file of conf/ sets a key, and what stands beside it."""

    file: Path
    line: int
    value: str
    comment: str


def comments(path: Path) -> Iterator[tuple[str, Place]]:
    """Yields the keys of a YAML file, dotted, each with its line and the comment behind it."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.Node | None, where: str) -> Iterator[tuple[str, Place]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = f"{where}.{key.value}".lstrip("."), key.start_mark.line
            comment = re.search(r"\s# ?(.*)$", lines[line])
            written = text[value.start_mark.index : value.end_mark.index].strip()
            yield name, Place(path, line + 1, written, comment[1] if comment else "")
            yield from walk(value, name)

    yield from walk(yaml.compose(text, Loader=LOADER), "")


def header(path: Path) -> str:
    """Returns the comment at the head of a file of conf/, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [
        line[1:].strip() for line in lines[: next((i for i, x in enumerate(lines) if x[:1] != "#"), None)]
    ]
    return " ".join(line for line in head if not line.startswith("@package"))


def places(group: str, choice: str, package: str | None = None) -> dict[str, Place]:
    """Returns where the file of a choice, and those that it takes in, set keys of the whole config."""
    path = files(group).get(choice)
    if path is None:
        return {}
    head = re.search(r"^# @package (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    package = package or (head[1] if head else group)
    found = dict[str, Place]()
    for entry in (yaml.load(path.read_text(encoding="utf-8"), LOADER) or {}).get("defaults") or []:
        if isinstance(entry, str) and entry != "_self_":
            name = entry.partition("@")[0]
            folder, _, file = name.rpartition("/")
            found |= places(folder.lstrip("/") or group, file, package)
    prefix = "" if package == "_global_" else f"{package}."
    return found | {prefix + name: place for name, place in comments(path) if not name.startswith("defaults")}
