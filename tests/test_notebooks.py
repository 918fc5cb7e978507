"""The notebooks run from top to bottom as they are, with tiny settings."""

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from support.command import ROOT

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
ONLINE = """
import os, types, wandb
os.environ |= {"WANDB_MODE": "online", "WANDB_API_KEY": "none"}
run = types.SimpleNamespace(group="sweep", name="from afar", state="finished", summary={"best/val/top1": 0.5})
wandb.Api = lambda timeout: types.SimpleNamespace(runs=lambda project, **_: [run])
"""


def sources(name: str, settings: str = "") -> list[str]:
    """Returns a notebook's code, with settings after its own; the kernel first forgets all other names."""
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    return ["%reset -f", code[0].source, settings, *(cell.source for cell in code[1:])]


def executed(*parts: list[str]) -> list[NotebookNode]:
    """Runs code in one kernel, which imports once, and returns all outputs."""
    book = new_notebook(cells=[new_code_cell(source) for part in parts for source in part])
    NotebookClient(book, timeout=200, resources={"metadata": {"path": str(Path.cwd())}}).execute()
    return [output for cell in book.cells for output in cell.outputs]


def pictures(outputs: list[NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def text(outputs: list[NotebookNode]) -> str:
    return "\n".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs
    )


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")


def test_they_run() -> None:
    """The last over the run that the one before it trained."""
    outputs = executed(
        sources("look_at_data"),
        sources("look_into_a_run", "epochs = 2"),
        sources("compare_runs", "runs = 'runs'"),
    )
    said = text(outputs)
    assert "10 classes, 1 channels, 8×8 pixels" in said and "of 359 are wrong" in said
    assert "1 runs: {'finished': 1}" in said and "has no WANDB_API_KEY" in said
    assert pictures(outputs) == 4 + 5 + 2
    check(outputs)


@pytest.mark.slow
def test_images_that_can_not_be_read_are_left_out(here: Callable[..., None], folder: Path) -> None:
    settings = (
        "data=imagefolder",
        f"data.root={folder}",
        "data.image_size=16",
        "data.num_workers=0",
        "logger=csv",
    )
    skip = ("data.on_error=skip", "data.max_errors=0.5", "data.test_fraction=0.4", "trainer.max_epochs=1")
    here("train", *settings, *skip, "trainer.accelerator=cpu", "hydra.run.dir=run")
    tested = list(pd.read_csv("run/test/predictions.csv")["name"])
    Path(tested[0]).write_bytes(b"")
    said = text(executed(sources("look_into_a_run", "run = 'run'")[:9]))
    assert f"of {len(tested) - 1} are wrong" in said and "f1" in said


@pytest.mark.slow
def test_own_pictures_a_sweep_and_wandb(folder: Path) -> None:
    own = (
        f"overrides = ['data=imagefolder', 'data.root={folder}', 'data.image_size=64', 'augment=randaugment']"
    )
    outputs = executed(
        sources("look_at_data", own),
        sources("compare_runs", "epochs = 1"),
        [ONLINE, sources("compare_runs")[-1]],
    )
    said = text(outputs)
    assert (
        "3 classes, 3 channels, 64×64 pixels" in said
        and "6 runs: {'finished': 6}" in said
        and "from afar" in said
    )
    assert pictures(outputs) == 4 + 2
    check(outputs)


def check(outputs: list[NotebookNode]) -> None:
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert max(len(text([output]).splitlines()) for output in outputs) < 40  # a screen


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_are_stored(path: Path) -> None:
    """`python notebooks/run.py` stores them: pictures, no path of a machine, in a file of a few kB."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert pictures(outputs) >= 2 and path.stat().st_size < 400_000
    assert not re.search(r"/(home|root|tmp|Users|work)\b", text(outputs))
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(len(cell.source.splitlines()) <= 25 for cell in book.cells)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_use_the_public_names_alone(path: Path) -> None:
    assert "from imgcls" not in path.read_text() and "import imgcls." not in path.read_text()
