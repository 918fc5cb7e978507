"""imgcls pack: a folder of images in a few files, in a form that is fast to train from."""

import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from imgcls.commands.verb import verb
from imgcls.config import check as configs
from imgcls.config.paths import hydra_quoted, shown
from imgcls.config.training import Node
from imgcls.errors import UserError

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


@verb("pack", PackConfig)
def main(config: PackConfig, run_dir: Path) -> None:
    """Packs a folder set into the directory `out`, which is there only when all of it is."""
    out = Path(config.out).expanduser()
    if out.exists() or out.is_symlink():
        raise UserError(f"out={out} is there already; give another directory, or delete it")
    configs.check({"data": config.data})
    from imgcls.data.imagefolder import ImageFolder
    from imgcls.data.module import ImageDataModule
    from imgcls.engine.build import prepare

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


def pack(data: Any, out: Path, config: PackConfig) -> None:
    """Writes to a hidden directory beside `out`, which takes its name when it is whole and on the disk."""
    from filelock import FileLock, Timeout

    from imgcls.tools.pack.packing import write_pack

    partial, start = out.with_name(f".{out.name}.partial"), time.perf_counter()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{partial}.lock", timeout=0):
            try:
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                manifest = write_pack(data, partial, config)
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
    except KeyboardInterrupt:
        log.error("interrupted; nothing is left of %s", shown(out))
        sys.exit(130)
    images, size = (
        sum(split.images for split in manifest.splits.values()),
        sum(file.bytes for file in manifest.files.values()),
    )
    speed, choice = (
        images / (time.perf_counter() - start),
        "streaming" if config.format == "litdata" else "packed",
    )
    log.info("%s images, %.1f MB, %.0f images/s: %s", f"{images:,}", size / 1e6, speed, shown(out))
    log.info("train on it: imgcls train data=%s data.root=%s", choice, hydra_quoted(shown(out)))
