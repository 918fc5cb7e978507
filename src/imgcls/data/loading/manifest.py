"""Manifest: reads the facts of a pack from manifest.json, and checks its files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from imgcls.data.loading.splits import Cut, OptionalCut
from imgcls.errors import UserError
from imgcls.spec import DataSpec

VERSION = 1
READERS = {"pixels": "packed", "jpeg": "packed", "litdata": "streaming"}  # the `data=` for each format
# The columns of the table of a split, beside the label and the name of the image's file.
RECORD = [("offset", "<i8"), ("bytes", "<i8"), ("height", "<i4"), ("width", "<i4")]
# A file that `imgcls pack` writes. No name leads out of the folder of the pack.
Name = Annotated[str, Field(pattern=r"^(train|val|test)(\.npy|\.bin|/[a-z0-9][a-z0-9._-]*)$")]
FORBID = ConfigDict(extra="forbid")  # a key more or a key less is refused


def record_of(targets: Tensor) -> list[tuple[Any, ...]]:
    """Returns the fields of a table's records; the last is the label: a class, or 0 and 1 for each label."""
    return [*RECORD, ("label", "<i8") if targets.ndim == 1 else ("label", "|u1", (targets.shape[1],))]


def is_record(fields: Sequence[Any]) -> bool:
    """Says whether numpy's description of a table is that of `record_of` and a name."""
    if len(fields) != len(RECORD) + 2 or [*fields[: len(RECORD)]] != RECORD:
        return False
    (label, *kind), name = fields[-2:]
    classes, labels = kind == ["<i8"], len(kind) == 2 and kind[0] == "|u1" and len(kind[1]) == 1
    return label == "label" and (classes or labels) and name[0] == "name" and name[1].startswith("|S")


@dataclass
class SplitFacts:
    images: int
    shape: list[int]  # (H, W, C) of the images, 0 for what differs
    classes: dict[str, int]


@dataclass
class FileFacts:
    bytes: int
    sha256: str


@dataclass(config=FORBID)
class Manifest:
    """The facts of a set."""

    version: int
    format: str
    size: int | None  # of the short side, at most, in pixels
    quality: int
    spec: DataSpec
    val_fraction: OptionalCut
    test_fraction: Cut
    splits: dict[str, SplitFacts]
    skipped: list[str]
    files: dict[Name, FileFacts]


def read_manifest(root: Path, formats: tuple[str, ...]) -> Manifest:
    """Returns the manifest of a pack that has one of `formats`."""
    path, advice = root / "manifest.json", "expected a directory that `imgcls pack` made"
    try:
        stored = json.loads(path.read_text())
        version, found = stored["version"], stored["format"]
    except FileNotFoundError as error:
        raise UserError(f"data.root={root}: there is no manifest.json; {advice}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({type(error).__name__}); {advice}") from error
    if version != VERSION:
        this = f"this is version {VERSION}"
        raise UserError(f"data.root={root} is a pack of version {version}; {this}: pack it again")
    if found not in formats:
        expected = f"expected {' or '.join(formats)}; set data={READERS.get(str(found), 'packed')}"
        raise UserError(f"data.root={root} is packed as {found}; {expected}")
    try:
        manifest = TypeAdapter(Manifest).validate_python(stored)
    except (ValidationError, UserError) as error:  # the second is of the spec
        raise UserError(f"{path}: {fault_of(error)}; {advice}") from error
    for split in ("train", *manifest.splits):
        if split not in manifest.splits or f"{split}.npy" not in manifest.files:
            raise UserError(f"{path} has no split {split}, or no file {split}.npy; {advice}")
    return manifest


def fault_of(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"


def facts_of(path: Path) -> FileFacts:
    with path.open("rb") as file:
        return FileFacts(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def check_files(root: Path, files: dict[str, FileFacts], verify: bool) -> None:
    """Raises UserError where a file is not as the manifest says: its size, and with `verify` its checksum."""
    for name, expected in files.items():
        path = root / name
        if not path.is_file():
            fault = "is missing"
        elif (found := path.stat().st_size) != expected.bytes:
            fault = f"has {found:,} bytes instead of {expected.bytes:,}"
        elif verify and facts_of(path) != expected:
            fault = "is damaged: its checksum is another"
        else:
            continue
        raise UserError(f"{path} {fault}; copy the pack again or make it again")
