"""imgcls pack: writes a folder of images into a few files, in a form that is fast to train from."""

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import Field

from imgcls.config import check as configs
from imgcls.config.paths import hydra_quoted, shown
from imgcls.config.training import Node
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.module import ImageDataModule
from imgcls.engine.build import prepare
from imgcls.errors import UserError
from imgcls.tools.pack.packing import Form, write_pack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackConfig:
    """Keys of conf/pack.yaml."""

    data: Node
    out: str
    format: Literal["pixels", "jpeg", "litdata"]
    size: Annotated[int, Field(ge=1)] | None
    quality: Annotated[int, Field(ge=1, le=100)]
    on_error: Literal["refuse", "skip"]


def main(config: PackConfig, run_dir: Path) -> None:
    """Packs a folder set into the directory `out`, which is there only when all of it is."""
    out = Path(config.out).expanduser()
    if out.exists() or out.is_symlink():
        raise UserError(f"out={out} is there already; give another directory, or delete it")
    configs.check({"data": config.data})

    prepare(0)
    data = configs.build(config.data, "data", ImageDataModule)
    if not isinstance(data, ImageFolder):
        target = config.data["_target_"]
        raise UserError(f"{target} has no image files to pack; expected data=imagefolder or imagenet")
    if data.fraction < 1:
        raise UserError(
            f"data.fraction={data.fraction}: all images are packed; give the fraction when training"
        )
    if out.resolve().is_relative_to(data.root.resolve()):
        raise UserError(
            f"out={out} lies in data.root={data.root}, where it would be a class; give another directory"
        )
    data.prepare_data()
    pack(data, out, config)


def pack(data: ImageFolder, out: Path, config: PackConfig) -> None:
    """Packs the images, and says how many there are and how to train on them."""
    start, form = time.perf_counter(), Form(config.format, config.size, config.quality)
    try:
        with whole(out) as partial:
            manifest = write_pack(data, partial, form, skip=config.on_error == "skip")
    except KeyboardInterrupt:
        log.error("interrupted; nothing is left of %s", shown(out))
        sys.exit(130)
    images = sum(split.images for split in manifest.splits.values())
    size, speed = sum(file.bytes for file in manifest.files.values()), images / (time.perf_counter() - start)
    choice = "streaming" if config.format == "litdata" else "packed"
    log.info("%s images, %.1f MB, %.0f images/s: %s", f"{images:,}", size / 1e6, speed, shown(out))
    log.info("train on it: imgcls train data=%s data.root=%s", choice, hydra_quoted(shown(out)))


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yields a hidden directory, which takes the name `out` at the end; after an error nothing stays.

    Raises:
        UserError: another process writes to it, or the disk does not take it.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{partial}.lock", timeout=0):
            try:
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                yield partial
                partial.rename(out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                Path(f"{partial}.lock").unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(
            f"out={out} is being packed by another process; wait for it or give another"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"out={out} can't be written ({reason}); free some disk or give another") from error
