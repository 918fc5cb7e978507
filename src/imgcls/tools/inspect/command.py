"""imgcls inspect: says what is in the data, and what is wrong with it, before anything is trained on it. It
works from the folders, or the rows of a table, so that all faults of a set are listed at once, also those
that training refuses. Nothing of the data is changed."""

import json
import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from imgcls.augment.settings import Augment
from imgcls.config import check as configs
from imgcls.config.build import build
from imgcls.config.training import Node
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.memory import MemoryDataModule
from imgcls.data.module import ImageDataModule
from imgcls.data.rows import RowsModule
from imgcls.engine.build import prepare
from imgcls.errors import UserError, one_line
from imgcls.processes import cores
from imgcls.tools.inspect.findings import findings, write_exclude
from imgcls.tools.inspect.page import draw_samples, show, write
from imgcls.tools.inspect.scan import list_files, list_memory, list_rows, scan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InspectConfig:
    """Keys of conf/inspect.yaml."""

    data: Node
    augment: Node
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    near: Annotated[int, Field(ge=0, le=6)] | None
    samples: Annotated[int, Field(ge=1, le=256)]


def main(config: InspectConfig, run_dir: Path) -> None:
    """Reads each image once, compares them, writes what it finds into the run directory, and prints it."""
    configs.check({"data": config.data})
    try:
        report(config, run_dir)
    except KeyboardInterrupt:
        log.error("interrupted")
        sys.exit(130)


def report(config: InspectConfig, run_dir: Path) -> None:
    """Reads all images, compares them, writes the findings and prints them."""
    options = config.data
    data, refused = prepared(options, Augment.read(config.augment), config.seed)
    if isinstance(data, MemoryDataModule):
        listing = list_memory(data, options)
    else:
        listing = list_rows(data, options) if isinstance(data, RowsModule) else list_files(data, options)
    start, workers = time.perf_counter(), options.get("num_workers")
    table = scan(listing, min(cores(), 16) if workers is None else workers)
    seconds = time.perf_counter() - start
    found = {
        "data": listing.name,
        "training_refuses": refused,
        "seconds": round(seconds, 2),
        "images_per_second": round(len(table) / seconds, 1),
        **findings(listing, table, config.near, options.get("bits")),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    in_files = not isinstance(data, MemoryDataModule)
    found["excluded"] = write_exclude(found, run_dir / "exclude.txt") if in_files else 0
    unreadable = {listing.reader.paths[i] for i in table.index[table["reason"].notna()]}
    samples = [] if data is None or refused else draw_samples(data, unreadable, config.samples)
    reason = "training refuses this data" if refused else "no image can be read"
    found["no_samples"] = None if samples else reason
    write(run_dir, found, table, listing.reader, samples)
    (run_dir / "inspect.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found, run_dir)


def prepared(options: Node, augment: Augment, seed: int) -> tuple[ImageDataModule | None, str | None]:
    """Returns the datamodule as training has it (None: it can't be made), and why training refuses the data.
    Raises UserError where the mistake is in the config."""
    prepare(seed)
    target, data = options["_target_"], None
    kind = configs.locate(target, "data._target_")
    if not (isinstance(kind, type) and issubclass(kind, MemoryDataModule | ImageFolder | RowsModule)):
        reads = f"reads image files and sets in memory, not {target}"
        raise UserError(f"data: inspect {reads}; give what it was made from")
    try:
        data = build(options, "data", ImageDataModule, seed=seed, augment=augment)
        data.prepare_data()
        data.setup()
    except UserError as error:
        unread = data is None and issubclass(kind, RowsModule)
        if unread or issubclass(kind, MemoryDataModule) or re.match(r"(data|augment)[.:]", str(error)):
            raise
        return data, one_line(error)
    return data, None
