"""Private names of libraries are touched in files called private.py alone."""

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import ROOT

FILES = sorted(path for path in (ROOT / "src").rglob("*.py") if path.name != "private.py")
PUBLIC: set[str] = runpy.run_path(str(ROOT / "docs" / "counts.py"))["PUBLIC"]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def functions(path: Path) -> set[str]:
    """Returns the names of the functions, methods and classes that a module defines."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def touched(path: Path) -> Iterator[str]:
    """Yields the attributes that a module reads or sets and that may be a library's: neither the module nor
    its `self` has them; of `super()`, those that no other module of ours defines."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    owners = [(ast.unparse(node.value), node.attr) for node in nodes]
    own = functions(path) | {name for owner, name in owners if owner in ("self", "cls")}
    for owner, name in owners:
        if owner == "super()" and is_private(name):
            inherited = any(name in functions(other) for other in FILES if other != path)
        else:
            inherited = name in own
        if not inherited:
            yield name


def imported(path: Path) -> Iterator[str]:
    """Yields the names that a module imports from other packages, and each part of these packages' names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("imgcls"):
            yield from [*(node.module or "").split("."), *(alias.name for alias in node.names)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "src/imgcls")))
def test_no_private_name_of_a_library(path: Path) -> None:
    found = {name for name in [*touched(path), *imported(path)] if is_private(name)}
    assert not found
