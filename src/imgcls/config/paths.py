"""Path keys: puts their values on a command line in quotes for Hydra, and expands `~` in them."""

import os
import re
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

_packaged = Path(__file__).parents[1] / "conf"  # in a wheel; a checkout has it at its top
CONF = _packaged if _packaged.is_dir() else Path(__file__).parents[3] / "conf"
PATHS = (
    "checkpoint", "source", "out", "features", "images", "resume", "run", "runs", "json",
    "data.root", "data.file", "data.exclude", "data.cache", "backbone.weights",
    "callbacks.distillation.teacher", "callbacks.distillation.backbone.weights",
    "hydra.run.dir", "hydra.sweep.dir", "*.root", "*.dirpath", "*_dir", "*_folder", "*_file",
)  # fmt: skip
# Values with characters that are no grammar of Hydra's: compare's conditions, what stands between two labels
AS_TEXT = ("where", "baseline", "data.separator")
ONE_VALUE = ("hydra.*", "resume", "data.separator")  # keys for which a comma separates no jobs, also under -m
IN_QUOTES = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
FUNCTION = r"(?:choice|range|glob|sort|shuffle)"
INTERPOLATION = r"\$\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"  # with two more within one another
PIECE = re.compile(  # a value up to the comma that ends it
    rf"""( {IN_QUOTES}
         | \[ (?: {INTERPOLATION} | [^]] )* \]  # a list
         | {FUNCTION} \( [^)]* \)
         | (?: {INTERPOLATION} | [^,] )+
         ) (?: , | $ )""",
    re.VERBOSE,
)
# A value that Hydra reads itself.
GRAMMAR = re.compile(rf"{IN_QUOTES}|\{{.*\}}|{FUNCTION}\(.*\)|null|\?\?\?", re.DOTALL)
NUMBER_LIKE = re.compile(r"(?i)[-+]?\.?\d.*|[-+]?inf|nan|true|false")  # Hydra may read it as no text


def expanded(path: str) -> str:
    """Returns a path with the home folder for `~`; that of nobody, `~nobody`, stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111


def takes_path(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in PATHS)


def quoted(arguments: list[str]) -> list[str]:
    """Returns a command line in which each path is in the quotes that Hydra's grammar needs. Values that are
    already in quotes, and null, stay as they are. Under `-m` a comma separates two values. Hydra's own parser
    can't do this: it refuses `~`, an apostrophe and an interpolation within another."""
    many, words = not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments), []
    for word in arguments:
        name, _, value = word.partition("=")
        key = name.lstrip("+")
        if name == "--config-dir" or key.startswith("hydra."):  # Hydra reads these before expand does
            value = expanded(value)
        if value and (takes_path(key) or key in AS_TEXT):
            one = not many or any(fnmatchcase(key, pattern) for pattern in ONE_VALUE)
            value = ",".join(map(_as_text, [value] if one else PIECE.findall(value)))
        words.append(f"{name}={value}" if value else word)
    return words


def _as_text(value: str) -> str:
    """Returns one value written so that Hydra reads this text, also where it looks like a number."""
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(_as_text(piece.strip()) for piece in PIECE.findall(value[1:-1]))}]"
    if GRAMMAR.fullmatch(value):
        return value
    return hydra_quoted(value, always=bool(NUMBER_LIKE.fullmatch(value)))


def expand(value: Any, where: str = "") -> Any:
    """Returns a plain config with the home folder in place of `~`, where a key takes a path."""
    if isinstance(value, dict):
        return {key: expand(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, where) for item in value]
    return expanded(value) if isinstance(value, str) and takes_path(where) else value


def cache_dir() -> Path:
    """Returns the folder for files that can be made again. Raises RuntimeError if this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls"


def shown(path: Path | str) -> str:
    """Returns a path as short as it can be written here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def hydra_quoted(text: str, always: bool = False) -> str:
    """Returns a value for Hydra's command line: in quotes if it has characters of the grammar."""
    bare = re.fullmatch(r"[\w./+-]+", text, re.ASCII) and not always
    return text if bare else QuotedString(text, Quote.single).with_quotes()


def remove_empty(*folders: Path) -> None:
    """Removes folders below the working directory, the inner ones first, up to the first that is not empty.
    The working directory itself, and what lies elsewhere, stays: nobody said that it was made for a run."""
    here = Path.cwd()
    with suppress(OSError):
        for folder in folders:
            if here not in folder.absolute().parents:
                return
            folder.rmdir()
