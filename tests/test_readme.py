"""The README's commands, as they stand there, on small sets that lie where a reader's would."""

import gzip
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import ROOT

from imgcls.__main__ import VERBS

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line
]


def write_fashion_mnist(folder: Path, images: int = 200) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split in ("train", "t10k"):
        pixels = generator.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        labels = np.arange(images, dtype=np.uint8) % 10
        for name, array in (
            (f"{split}-images-idx3-ubyte.gz", pixels),
            (f"{split}-labels-idx1-ubyte.gz", labels),
        ):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / name).write_bytes(gzip.compress(header + array.tobytes()))


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 9
    assert {line.split()[1] for line in COMMANDS} == set(VERBS)


def trained_on(data: str) -> Path:
    """Returns a run of `debug=fast` with this data."""
    found = [
        path for path in Path("runs/debug").glob("*/config.yaml") if f"  data: {data}\n" in path.read_text()
    ]
    return found[0].parent


def test_commands(
    here: Callable[..., None],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # test_report.py draws; here it is most of the time
    monkeypatch.setattr("imgcls.report.classification.ClassificationReport.draw", lambda *_: None)
    write_fashion_mnist(Path("data"))
    for line in sorted(
        COMMANDS, key=lambda line: line.split()[1] != "train"
    ):  # others look at what it leaves
        program, verb, *arguments = line.split()
        assert program == "imgcls"
        if "sweep=optuna" in arguments:
            here(verb, *arguments, "debug=fast", "test=false", "sweep.n_trials=2")
        elif "-m" in arguments:
            here(verb, *arguments, "debug=fast", "test=false")
        elif verb == "train":
            here(
                verb, *arguments, *([] if "debug=fast" in arguments else ["debug=fast"]), "data.batch_size=4"
            )
        elif verb == "bench":
            here(verb, *arguments, "data.batch_size=4", "bench.seconds=0.1", "bench.rounds=1")
        elif verb == "reproduce":
            here(verb, f"run={trained_on('digits')}", *arguments[1:])
        elif verb == "compare":
            here(verb, *shlex.split(" ".join(arguments)), "debug=true")
        elif verb in ("inspect", "new"):
            here(verb, *arguments)
        elif verb == "pack":
            here(verb, *arguments)
            here("train", "data=packed", "data.root=packed", "data.image_size=32", "debug=fast")
        elif "data=imagefolder" in line:
            here(verb, f"checkpoint={trained_on('imagefolder')}", *arguments[1:])
        else:
            here(verb, f"checkpoint={trained_on('digits')}", *arguments[1:])
    said = capsys.readouterr().out
    starts = [line.split()[1] for line in COMMANDS if " -m " not in line]
    assert said.count("Test of the best checkpoint") == sum(
        starts.count(verb) for verb in ("train", "pack", "reproduce")
    )
    assert said.count("Test of runs/") == starts.count("eval") == 3
    shutil.rmtree("runs")


def test_every_choice_named_is_there() -> None:
    table = README.split("## Swap a part")[1].split("## Documents")[0]
    for group, choices in re.findall(r"\| `(\w+)=` \| (.*?) \|", table):
        for word in re.findall(r"`([a-z]\w+)`", choices.partition(";")[0]):
            assert (ROOT / "conf" / group / f"{word}.yaml").is_file(), f"{group}={word}"


def test_every_link_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_file_named_is_there() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text().split("## The tree")[1].split("## ")[0]
    for name in re.findall(r"\b[\w/]+\.(?:py|yaml)\b", tree):
        assert list(ROOT.glob(f"src/**/{name}")) + list(ROOT.glob(f"conf/**/{name}")), name
    for folder in (ROOT / "src/imgcls").glob("*/"):
        assert f"{folder.name}/" in tree or folder.name == "__pycache__", folder
