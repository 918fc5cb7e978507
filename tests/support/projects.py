"""Projects as `imgcls new` writes them, in an empty folder."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgcls.tools.new import write

EXTENSIONS = Path(__file__).parents[1] / "extensions"


@contextmanager
def project(name: str, extension: bool = False) -> Iterator[Path]:
    """Writes a project into the working directory and works in it for a while; with `extension` the files of
    tests/extensions are added. Its package can be imported afterwards no more."""
    before, paths, inherited = Path.cwd(), [*sys.path], os.environ.get("PYTHONPATH")
    folder = write(name, before)
    if extension:
        shutil.copytree(
            EXTENSIONS / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        forget(name)
        sys.path[:] = paths
        os.environ.pop("PYTHONPATH", None)
        if inherited is not None:
            os.environ["PYTHONPATH"] = inherited


def forget(package: str) -> None:
    """Makes a package's modules be imported anew."""
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        del sys.modules[module]
