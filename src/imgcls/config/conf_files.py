"""Files of conf/: the folders that they lie in, the choices of a group, the keys of a verb's root config."""

import re
from pathlib import Path
from typing import Any

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
