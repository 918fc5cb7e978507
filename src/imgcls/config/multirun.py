"""Hydra's multirun: files that ask for it without `-m`, and the space of a sweep on the command line."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from imgcls.config.conf_files import conf_folders
from imgcls.config.paths import hydra_quoted, quoted

MANY = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
OTHERWISE = re.compile(r"-c|-i|-h|--(cfg|info|help|run)(=.*)?|hydra\.mode=.*")  # with these nothing is swept
# An override of the space: Hydra refuses lists for its own keys, and would read the key's dots as levels
PARAMS = re.compile(r"\+*(?:hydra\.sweeper|sweep)\.params\.([^=]+)=(.*)", re.DOTALL)
FLAT = "++sweep.params."  # what becomes of it


def is_multirun(words: Sequence[str]) -> bool:
    return not MANY.isdisjoint(words)


def as_multirun(verb: str, words: list[str]) -> list[str]:
    """Returns a command line with `-m` where a file that it chooses says `hydra.mode: MULTIRUN`: Hydra looks
    for that in the root config alone. Of verbs that have no sweeps each is one run."""
    if is_multirun(words) or any(OTHERWISE.fullmatch(word) for word in words):
        return words
    if not any(asks_for_many(path) for path in chosen_files(verb, words)):
        return words
    return ["-m", *words] if verb == "train" else [*words, "hydra.mode=RUN"]


def chosen_files(verb: str, words: Sequence[str]) -> Iterator[Path]:
    """Yields the files of conf/ that a command line chooses: the root, and a file for each `group=choice`."""
    folders = conf_folders()
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in ("--config-dir", "-cd"):
            folders = [*folders, Path(following)]
        elif word.startswith("--config-dir="):
            folders = [*folders, Path(word.partition("=")[2])]
    pairs = [word.lstrip("+").partition("=") for word in words]
    names = [verb, *(f"{group}/{choice}" for group, _, choice in pairs if re.fullmatch(r"[\w/]+", group))]
    for name in names:
        yield from [path for folder in folders if (path := folder / f"{name}.yaml").is_file()][:1]


def asks_for_many(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text) if "MULTIRUN" in text else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # type: ignore[attr-defined]  # Hydra says it
        return False
    hydra = config.get("hydra") if isinstance(config, dict) else None
    return isinstance(hydra, dict) and hydra.get("mode") == "MULTIRUN"


def as_text(words: list[str]) -> list[str]:
    """Returns a command line in which the space of a sweep, `sweep.params.KEY=…` and `hydra.sweeper.params`,
    is text under one flat key, as in a file."""
    return [_as_text(word) for word in words]


def _as_text(word: str) -> str:
    if (found := PARAMS.fullmatch(word)) is None:
        return word
    key, value = found.groups()
    if not value.startswith(("'", '"')):  # is in Hydra's quotes
        value = hydra_quoted(quoted(["-m", f"{key}={value}"])[1].partition("=")[2], always=True)
    return f"{FLAT}{key.replace('.', chr(92) + '.')}={value}"


def named(overrides: Sequence[str]) -> list[str]:
    """Returns the keys of the space that a command line has named."""
    found = (o.partition("=")[0].removeprefix(FLAT) for o in overrides if o.startswith(FLAT))
    return [key.replace("\\.", ".") for key in found]
