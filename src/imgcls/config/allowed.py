"""Allow-list for checkpoints: what a file from elsewhere may name, looked at before anything is imported."""

import functools
import importlib
import importlib.util
import inspect
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from imgcls.errors import UserError

# Where our own networks and data sets are defined, but for what builds them from a config, and for their bases.
ROOMS = {"backbone": "imgcls.backbones.", "data": "imgcls.data."}
BUILDERS = ("imgcls.backbones.build", "imgcls.data.module", "imgcls.data.memory")


def allowed(target: object, kind: str, trust: Iterable[str] = ()) -> Callable[..., Any]:
    """Returns the function or class that a checkpoint names for its `backbone` or its `data`.

    It must be defined in our own modules of that kind, or in a package that the user trusts: one of `trust`, or the
    package of the user's own project (`own_package`). A name is split once, into module and object, so that it can't
    walk into what a module imports.

    Raises:
        UserError: it is of another package, which is not imported; or there is no such object.
    """
    where = f"the checkpoint's {kind}._target_={target}"
    module_name, _, name = str(target).rpartition(".")
    package, ours = module_name.partition(".")[0], module_name.startswith(ROOMS[kind])
    trusted = {*trust, own_package()} - {None, "imgcls"}
    if not ours and package not in trusted:
        advice = (
            f"add trust=[{package}] if you trust all of its code"
            if package.isidentifier()
            else "don't use it"
        )
        raise UserError(f"{where}: {package or target} is not trusted and was not imported; {advice}")
    try:
        found = vars(importlib.import_module(module_name)).get(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{where}: the module {error.name} is not there; install it, or put its folder on PYTHONPATH"
        ) from error
    home = str(getattr(found, "__module__", ""))
    defined = home == module_name if ours else home.partition(".")[0] in trusted
    if not (inspect.isfunction(found) or inspect.isclass(found)) or not defined or home in BUILDERS:
        raise UserError(
            f"{where}: expected a function or class that is defined in {module_name}; it was not called"
        )
    return found  # type: ignore[no-any-return]


@functools.cache
def own_package() -> str | None:
    """Returns the package that `[tool.imgcls]` names in the nearest pyproject.toml at or above the working directory.

    Raises:
        UserError: that file can't be read.
    """
    folders = [Path.cwd(), *Path.cwd().parents]
    path = next(
        (folder / "pyproject.toml" for folder in folders if (folder / "pyproject.toml").is_file()), None
    )
    if path is None:
        return None
    try:
        name = (
            tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("imgcls", {}).get("package")
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({' '.join(str(error).split())}); correct it") from error
    return name if isinstance(name, str) else None
