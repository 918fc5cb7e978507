"""imgcls new: the project that it writes, and names that it refuses."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REFUSED = {
    "": "no name: expected one name",
    "a b": "a b: expected one name",
    "leaf-net": "is no name of a package",
    "class": "a word of Python's",
    "imgcls": "is taken",
    "torch": "torch is taken",
    "random": "random is taken",
    "digits": "digits is taken",
    "full": "there are files in this folder",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused(words: str, said: Callable[..., str]) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    before = {*Path.cwd().rglob("*")}
    assert REFUSED[words] in said("new", *words.split())
    assert {*Path.cwd().rglob("*")} == before


@pytest.mark.slow  # trains, resumes and evaluates
def test_the_project_s_own_tests_pass(here: Callable[..., None]) -> None:
    here("new", "leafnet")
    for command in (["ruff", "check", "."], ["pytest", "-q"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd="leafnet", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
