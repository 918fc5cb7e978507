"""docs/reliability.md names tests that are there, and says which an ordinary run leaves out."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from support.command import ROOT

ROWS = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if "::test_" in line]


def marks(test: Any, module: Any) -> set[str]:
    """Returns the marks of a test, of its parameters, and of its module."""
    own = getattr(test, "pytestmark", [])
    values = [value for mark in own if mark.name == "parametrize" for value in mark.args[1]]
    inner = [mark for value in values for mark in getattr(value, "marks", ())]
    whole = getattr(module, "pytestmark", [])
    return {mark.name for mark in [*own, *inner, *(whole if isinstance(whole, list) else [whole])]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_the_tests_of_a_promise(row: str) -> None:
    file = ""
    for named, test, after in re.findall(r"`([\w/]+\.py)?::(test_\w+)`([^`|]*)", row):
        file = named or file
        spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / "tests" / file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert ("slow" in after) == ("slow" in marks(getattr(module, test), module)), test


STOPS = re.findall(r"`([\w/]+\.py)` \| `([\w.]+)`", (ROOT / "docs" / "architecture.md").read_text())


@pytest.mark.parametrize(("file", "function"), STOPS, ids=" ".join)
def test_the_places_in_the_architecture(file: str, function: str) -> None:
    """docs/architecture.md names files and functions that are there."""
    nodes = ast.walk(ast.parse((ROOT / "src" / "imgcls" / file).read_text()))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert set(function.split(".")) <= defined
