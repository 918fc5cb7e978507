"""docs/first_hour.md: its commands run in order, and print what the page says, but for numbers."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from support.command import ROOT


def load() -> Any:
    spec = importlib.util.spec_from_file_location("first_hour", ROOT / "docs" / "first_hour.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(text: str) -> list[str]:
    """Returns the lines, up to what a machine may change: numbers, the width of columns, names of classes."""
    lines = [re.sub(r"[\d.,:]*\d", "0", line) for line in text.splitlines()]
    lines = [
        re.sub(r"(weakest classes|most confused|likely label errors): .*", r"\1", line) for line in lines
    ]
    return [re.sub(r"[\s─━╇┃│]+", " ", line) for line in lines if not line.startswith("likely label errors")]


def test_the_transcript(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first_hour, text = load(), (ROOT / "docs" / "first_hour.md").read_text()
    monkeypatch.setenv("COLUMNS", "112")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # test_report.py draws; here it is most of the time
    monkeypatch.setattr("imgcls.report.classification.ClassificationReport.draw", lambda *_: None)

    def run(command: str) -> str:
        program, *words = shlex.split(command)
        assert program == "imgcls"
        try:
            here(*words)
        except SystemExit as ended:
            print(ended.code if isinstance(ended.code, str) else "", end="")
        printed = capsys.readouterr()
        return printed.out + printed.err

    now = first_hour.replayed(text, run)
    assert plain(now) == plain(text)
