"""Shards of litdata: what writes them, and the check of their index before they are read."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from imgcls.data.loading.manifest import fault_of
from imgcls.errors import UserError

os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it would ask the network at each start
try:
    from litdata import StreamingDataLoader as StreamingDataLoader  # data/streaming.py takes these from here
    from litdata import StreamingDataset as StreamingDataset
    from litdata.streaming import Cache
    from litdata.streaming.downloader import get_downloader as get_downloader
except ModuleNotFoundError as error:
    install = "pip install -e '.[streaming]'"
    raise UserError(f"streams need litdata, which is not installed; in the clone: {install}") from error

FORBID = ConfigDict(extra="forbid")  # a key more or a key less is refused
SHARD = "64MB"  # large enough for object storage, small enough to shuffle and to fetch ahead


def shard_writer(folder: Path) -> Cache:
    """Returns the writer of shards: `writer[place] = sample`, and at the end `done` and `merge`."""
    return Cache(str(folder), chunk_bytes=SHARD)


# The index.json of a split's shards. litdata takes from it where to write and how to read the shards, which
# may be by running code in them; so only what `imgcls pack` writes is let through.
@dataclass(config=FORBID)
class ShardFacts:
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
    chunks: list[ShardFacts]
    config: ShardConfig
    updated_at: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$")]  # s since 1970; litdata names a folder so


def check_shards(path: Path, images: int) -> None:
    """Raises UserError where an index.json is not as `imgcls pack` writes it for so many images."""
    try:
        index = TypeAdapter(ShardIndex).validate_json(path.read_bytes())
        found = sum(shard.chunk_size for shard in index.chunks)
        fault = "" if found == images else f"it has {found:,} images, and the table {images:,}"
    except OSError as error:
        fault = f"it can't be read ({type(error).__name__})"
    except ValidationError as error:
        fault = " ".join(fault_of(error).split())
    if fault:
        raise UserError(f"{path}: {fault}; expected shards that `imgcls pack` made: pack again")
