"""What is installed, and from where: versions, certificates, and names that nobody else may own."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version
from support.command import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [
    Requirement(r)
    for part in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for r in part
]


def test_uv_takes_the_certificates_of_the_system() -> None:
    """Behind a company's proxy pip works by them, and uv's own would not."""
    makefile = (ROOT / "Makefile").read_text()
    assert "uv --system-certs" in makefile
    assert not re.search(r"^\t.*BIN\)/uv ", makefile, re.M)


def test_nobody_is_told_to_install_this_from_an_index() -> None:
    """Nothing on an index has this name; whoever takes it there would own the machines of who installs it."""
    asked = re.compile(r"(pip|uv) (install|add)[^\n]*[ \"\']imgcls")
    texts = [
        p
        for d in ("src", "conf", "docs", "notebooks", ".github")
        for p in (ROOT / d).rglob("*")
        if p.is_file()
    ]
    for path in (ROOT / "README.md", ROOT / "Makefile", *texts):
        if (
            path.suffix in (".md", ".py", ".yaml", ".yml", ".ipynb", ".html", "")
            and "__pycache__" not in path.parts
        ):
            assert not asked.search(path.read_text()), path


def test_no_range_admits_a_pre_release() -> None:
    for wanted in WANTED:
        for part in wanted.specifier:
            assert part.operator == "==" or not Version(part.version).is_prerelease, wanted
    hydra = {str(w.specifier) for w in WANTED if w.name.startswith("hydra-")}
    assert hydra == {"==1.4.0rc3"}, "Hydra and its launchers are of one version"


def test_the_lock_names_no_address() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
