"""Keys that take a path: their values are written as in a shell, on a command line and in files."""

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
_packaged = Path(__file__).parents[1] / "conf"  # in a wheel; a checkout has it at its top
CONF = _packaged if _packaged.is_dir() else Path(__file__).parents[3] / "conf"
PATHS = (
    "checkpoint", "source", "out", "images", "resume", "run", "runs", "json",
    "data.root", "data.exclude", "data.cache", "backbone.weights", "callbacks.distillation.teacher",
    "hydra.run.dir", "hydra.sweep.dir", "*.root", "*.dirpath", "*_dir", "*_folder", "*_file",
)  # fmt: skip
CONDITIONS = ("where", "baseline")  # of compare: `=`, `<` and `,` are their own, not of Hydra's grammar
ONE = ("hydra.*", "resume")  # under -m these have one value, so that a comma parts nothing
QUOTES = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"  # of an interpolation, and two more within one another
PIECE = re.compile(
    rf"({QUOTES}|\[(?:\${BRACES}|[^]])*\]|(?:choice|range|glob|sort|shuffle)\([^)]*\)|(?:\${BRACES}|[^,])+)(?:,|$)"
)
GRAMMAR = re.compile(rf"{QUOTES}|\{{.*\}}|(?:choice|range|glob|sort|shuffle)\(.*\)|null|\?\?\?", re.DOTALL)
OTHER = re.compile(r"(?i)[-+]?\.?\d.*|[-+]?inf|nan|true|false")  # Hydra may read it as no text


def expanded(path: str) -> str:
    """Returns a path with the home folder for `~`; that of nobody, `~nobody`, stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111


def takes_path(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in PATHS)


def quoted(arguments: list[str]) -> list[str]:
    """Returns a command line in which each path stands in the quotes that Hydra's grammar wants for it.

    What is in such quotes already, and null, stay as they are. Under `-m` a comma parts two values.
    """
    many = bool({"-m", "--multirun"} & set(arguments))
    return [_quoted(word, many) for word in arguments]


def _quoted(word: str, many: bool) -> str:
    name, _, value = word.partition("=")
    key = name.lstrip("+")
    if name == "--config-dir" or key.startswith("hydra."):  # Hydra reads these before expand does
        value = expanded(value)
    if not value or not (takes_path(key) or key in CONDITIONS):
        return f"{name}={value}" if value else word
    one = not many or any(fnmatchcase(key, pattern) for pattern in ONE)
    return f"{name}={','.join(map(_as_text, [value] if one else PIECE.findall(value)))}"


def _as_text(value: str) -> str:
    """Returns one value so that Hydra reads it as this text, also where it looks like a number."""
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(_as_text(piece.strip()) for piece in PIECE.findall(value[1:-1]))}]"
    if GRAMMAR.fullmatch(value):
        return value
    text = hydra_quoted(value)
    return f"'{text}'" if text == value and OTHER.fullmatch(value) else text


def expand(value: Value, where: str = "") -> Value:
    """Returns a plain config with the home folder in place of `~`, where a key takes a path."""
    if isinstance(value, dict):
        return {key: expand(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [expand(item, where) for item in value]  # type: ignore[return-value]
    return expanded(value) if isinstance(value, str) and takes_path(where) else value  # type: ignore[return-value]


def cache_dir() -> Path:
    """Returns the folder for what can be made anew at any time. Raises RuntimeError where this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls"


def shown(path: Path | str) -> str:
    """Returns a path as short as it can be written here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def hydra_quoted(text: str) -> str:
    """Returns a value as Hydra's command-line grammar takes it: in quotes where it has characters of the grammar."""
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), text)
    return f"'{escaped}'"
