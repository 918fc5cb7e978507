"""Check of the index.json of a split's shards: lets through only what `imgcls pack` writes.

litdata takes from it where to write and how to read the shards, which may be by running code in them.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from imgcls.errors import UserError

FORBID = ConfigDict(extra="forbid")


@dataclass(config=FORBID)
class ShardFacts:
    """What an index says of a shard."""

    chunk_bytes: PositiveInt
    chunk_size: PositiveInt  # images
    filename: Annotated[str, Field(pattern=r"^chunk-[0-9]+-[0-9]+\.bin$")]
    dim: None = None


@dataclass(config=FORBID)
class ShardConfig:
    """How shards are read: bytes of an image and an integer, neither packed nor encrypted."""

    chunk_bytes: PositiveInt
    data_format: tuple[Literal["bytes"], Literal["int"]]
    data_spec: Literal[
        r'[1, {"type": "builtins.dict", "context": "[\"image\", \"label\"]", "children_spec": '
        '[{"type": null, "context": null, "children_spec": []}, '
        '{"type": null, "context": null, "children_spec": []}]}]'
    ]
    item_loader: Literal["PyTreeLoader"]
    types: dict[str, str] | None = None  # nothing reads them
    chunk_size: None = None
    compression: None = None
    compression_batch_size: None = None
    compression_level: None = None
    encryption: None = None
    ipc_compression: None = None


@dataclass(config=FORBID)
class ShardIndex:
    """What an index holds; other keys, or none of one of these, are refused."""

    chunks: list[ShardFacts]
    config: ShardConfig
    updated_at: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$")]  # s since 1970; litdata names a folder so


INDEX = TypeAdapter(ShardIndex)


def check_shards(path: Path, images: int) -> None:
    """Raises UserError where an index.json is not as `imgcls pack` writes it for so many images."""
    try:
        found = sum(shard.chunk_size for shard in INDEX.validate_json(path.read_bytes()).chunks)
        fault = "" if found == images else f"it has {found:,} images, and the table {images:,}"
    except OSError as error:
        fault = f"it can't be read ({type(error).__name__})"
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    if fault:
        expected = "expected shards that `imgcls pack` made: pack again"
        raise UserError(f"{path}: {' '.join(fault.split())}; {expected}")
