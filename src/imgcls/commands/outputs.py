"""Output files of a verb: refused where they would overwrite others, and there whole or not at all."""

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imgcls.config.paths import shown
from imgcls.errors import UserError

log = logging.getLogger(__name__)


def check_out(out: Path, endings: tuple[str, ...], overwrite: bool, *beside: Path, key: str = "out") -> None:
    """Raises UserError where `out` has another ending, or where it or a file beside it is there already."""
    if out.suffix not in endings:
        raise UserError(f"{key}={out}: expected a file name that ends in {' or '.join(endings)}")
    for path in (out, *beside):
        if path.is_dir() or (path.exists() and not overwrite):
            advice = "give another name, or overwrite=true"
            raise UserError(f"{key}={out}: {shown(path)} is there already; {advice}")


@contextlib.contextmanager
def writing(out: Path, key: str = "out") -> Iterator[None]:
    """Makes the folder of `out`, a value of `key`. What hinders or interrupts the block, which leaves
    nothing, is one line."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = f"({error.strerror or error}); free some disk or give another"
        raise UserError(f"{key}={out} can't be written {why}") from error
    except KeyboardInterrupt:
        log.error("interrupted; nothing is left of %s", shown(out))
        sys.exit(130)


@contextlib.contextmanager
def appearing(out: Path, key: str = "out") -> Iterator[Path]:
    """Yields a hidden folder; its files move beside `out` if the block ends well, else they are deleted."""
    with writing(out, key), tempfile.TemporaryDirectory(prefix=".partial-", dir=out.parent) as partial:
        yield Path(partial)
        for path in Path(partial).iterdir():
            path.replace(out.parent / path.name)
