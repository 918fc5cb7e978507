"""imgcls new: writes a small project of your own beside this package. It has a network, a task and
a data set of its own, their config files and tests."""

import keyword
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from imgcls.config.paths import CONF
from imgcls.errors import UserError

GROUPS = ("backbone", "data", "experiment", "task")  # of conf/: the project has a file of its name in each
TEMPLATES = Path(__file__).with_name("new_project")  # a file's path may have NAME in it
USAGE = """imgcls new NAME   writes a project into the folder NAME, whose package has this name

  imgcls new leafnet
  cd leafnet
  imgcls train experiment=leafnet   seconds on a CPU
  pytest -q                         its own tests

src/leafnet has a network, a task and a data set to change, conf a file for each; README.md says what next."""


def main(words: list[str]) -> None:
    """Writes the project that the command line names. Raises UserError: none or several names, one that no
    package can have, or a folder that is not empty."""
    if {"-h", "--help"} & {*words}:
        return print(USAGE)
    if len(words) != 1:
        raise UserError(f"{' '.join(words) or 'no name'}: expected one name, as in imgcls new leafnet")
    folder = write(words[0], Path.cwd())
    print(f"{folder.name}: written; its README.md says what to do next. It trains as it is:")
    print(f"cd {folder.name} && imgcls train experiment={folder.name}")


def write(name: str, place: Path) -> Path:
    """Writes the project `name` into a folder of `place`; returns it. Raises UserError as `main`."""
    check_name(name)
    folder = place / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{name}: there are files in this folder; take another name, or an empty folder")
    classes = "".join(part.capitalize() for part in name.split("_"))
    source = Path(__file__).parents[3]
    checkout = source if (source / "pyproject.toml").is_file() else None
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    for path in sorted(path for path in TEMPLATES.rglob("*.jinja") if path.is_file()):
        relative = str(path.relative_to(TEMPLATES)).removesuffix(".jinja").replace("NAME", name)
        target = folder / relative.replace("DOT", ".")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = jinja.from_string(path.read_text(encoding="utf-8"))
        target.write_text(text.render(name=name, classes=classes, checkout=checkout), encoding="utf-8")
    return folder


def check_name(name: str) -> None:
    """Raises UserError for a name that no package can have, or that is taken."""
    expected = "expected letters, digits and _, as in leafnet"
    if not name.isidentifier() or not name.isascii() or not name.islower():
        raise UserError(f"{name!r} is no name of a package; {expected.replace('letters', 'small letters')}")
    if keyword.iskeyword(name):
        raise UserError(f"{name} is a word of Python's; take another, such as leafnet")
    installed = {*sys.stdlib_module_names, *packages_distributions()}
    ours = {path.stem for group in GROUPS for path in (CONF / group).glob("*.yaml")}
    if name in {"imgcls", "tests", "conf", "src"} | installed | ours:
        raise UserError(f"{name} is taken; take another name, such as leafnet")
