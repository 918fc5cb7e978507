"""Project: the user's own package and conf folder, named by `[tool.imgcls]` in a pyproject.toml."""

import importlib.util
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from imgcls.errors import UserError, nearest

KEYS = ("package", "conf")


@dataclass(frozen=True)
class Project:
    """What `[tool.imgcls]` says.

    Args:
        root: the folder of pyproject.toml.
        package: the project's own package; checkpoints may name what it defines.
        conf: a folder of config files, laid out as ours; its files come before ours of the same name.
    """

    root: Path
    package: str | None = None
    conf: Path | None = None

    def enter(self) -> None:
        """Makes the package importable, here and in the processes that this one starts: ranks, workers,
        jobs of a launcher."""
        if self.package is None:
            return
        inside = any((self.root / "src" / f"{self.package}{end}").exists() for end in ("", ".py"))
        folder = str(self.root / "src" if inside else self.root)
        own = any(Path(folder, f"{self.package}{end}").exists() for end in ("", ".py"))  # else installed
        loaded = getattr(sys.modules.get(self.package), "__file__", None)
        if own and loaded and not Path(loaded).resolve().is_relative_to(Path(folder).resolve()):
            other = f"the package {self.package} of {Path(loaded).parent} is loaded already"
            raise UserError(f"{other}; start a new process for that of {folder}")
        if folder not in sys.path:
            sys.path.insert(0, folder)
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        if folder not in others:
            os.environ["PYTHONPATH"] = os.pathsep.join([folder, *others])


def own_project() -> Project | None:
    """Returns the project whose pyproject.toml is the nearest, in the working directory or above; None where
    that file has no `[tool.imgcls]`. Raises UserError: it can't be read, or the table has wrong values."""
    paths = [folder / "pyproject.toml" for folder in (Path.cwd(), *Path.cwd().parents)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("imgcls")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({' '.join(str(error).split())}); correct it") from error
    return None if table is None else read(table, path)


def read(table: object, path: Path) -> Project:
    """Returns the project of a table in pyproject.toml. Raises UserError: a value or key that is wrong."""
    where, root = f"{path}: [tool.imgcls]", path.parent
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}; expected a table with package and conf")
    for key in table:
        if key not in KEYS:
            raise UserError(f"{where} {key}: there is no such key; {nearest(key, KEYS)}")
    package, conf = table.get("package"), table.get("conf")
    if package is not None and (not isinstance(package, str) or not package.isidentifier()):
        raise UserError(f"{where} package={package!r}: expected the name of a package such as 'leafnet'")
    if package == "imgcls":
        raise UserError(f"{where} package='imgcls' is the engine; expected the name of your own package")
    if package in sys.stdlib_module_names:
        raise UserError(f"{where} package={package!r} is Python's own; expected the name of your own package")
    names = [f"{place}{package}{end}" for place in ("src/", "") for end in ("", ".py")]
    there = any((root / name).exists() for name in names)
    if package is not None and not there and importlib.util.find_spec(package) is None:
        raise UserError(f"{where} package={package!r}: there is no src/{package} in {root}; make it")
    if conf is not None and (not isinstance(conf, str) or not (root / conf).is_dir()):
        raise UserError(f"{where} conf={conf!r}: expected a folder in {root}")
    return Project(root, package, None if conf is None else (root / conf).resolve())
