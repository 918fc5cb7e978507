"""What nobody needs can be deleted, with its config files and tests: nothing else imports or names it."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.command import ROOT

from imgcls.__main__ import find_verbs

SOURCE = ROOT / "src" / "imgcls"
# The base of sets of files, as MemoryDataModule is that of sets in memory; it is in the API.
BASE = "imgcls.data.imagefolder"
DELETED = (
    "src/imgcls/data/imagenet.py", "src/imgcls/data/imagenet_val_labels.txt.gz", "conf/data/imagenet.yaml",
    "src/imgcls/data/imagenet_labels.py", "src/imgcls/data/imagenet_layouts.py",
    "src/imgcls/data/streaming.py", "src/imgcls/data/loading/shards.py", "conf/data/streaming.yaml",
    "src/imgcls/tools/pack.py", "conf/pack.yaml",
    "src/imgcls/backbones/wide_resnet.py", "conf/backbone/wide_resnet28_10.yaml",
    "src/imgcls/backbones/resnet.py", "conf/backbone/resnet18.yaml", "conf/backbone/resnet34.yaml",
    "conf/backbone/resnet50.yaml",
    "tests/data/test_imagenet.py", "tests/data/test_imagenet_layouts.py",
    "tests/data/test_imagenet_variants.py",
    "tests/data/test_streaming.py", "tests/engine/test_resume_stream.py", "tests/tools/test_refused.py",
    # A pack is what the tests of packed sets read.
    "tests/tools/test_pack.py", "tests/support/packs.py", "tests/data/test_packed.py",
    "tests/backbones/test_wide_resnet.py", "tests/backbones/test_resnet.py",
)  # fmt: skip
WORDS = ("`imagenet` ", " `streaming`", "`wide_resnet28_10` ", "`resnet18` ", "`resnet34` ", "`resnet50` ")
QUICK = ("tests/config", "tests/commands", "tests/data", "tests/test_main.py", "tests/test_readme.py",
         "tests/test_docs.py")  # fmt: skip


def imported(path: Path) -> set[str]:
    """Returns the modules that a file imports, in functions and under TYPE_CHECKING, too."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def named_in(group: str) -> set[str]:
    """Returns the modules of ours that the files of a group of conf/ name by `_target_`."""
    nodes = [yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / group).glob("*.yaml")]
    targets = [str((node or {}).get("_target_", "")).rpartition(".")[0] for node in nodes]
    return {target for target in targets if target.startswith("imgcls.")}


def test_nothing_imports_a_particular_data_set() -> None:
    sets = named_in("data") - {BASE}
    assert {"imgcls.data.digits", "imgcls.data.packed"} <= sets
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        assert module in sets or not imported(path) & sets, path


def test_no_verb_imports_another_room_for_one_backbone() -> None:
    """Networks are built by name alone, whichever there are."""
    libraries = {"imgcls.backbones.timm", "imgcls.backbones.torchvision"}
    networks = named_in("backbone") - libraries
    assert "imgcls.backbones.simple_cnn" in networks
    for path in SOURCE.rglob("*.py"):
        assert not imported(path) & networks, path


def test_verbs_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.__main__.__file__", str(tmp_path / "__main__.py"))
    (tmp_path / "tools" / "two").mkdir(parents=True)
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "eval.py").write_text('"""imgcls eval: tests it."""\n')
    (tmp_path / "commands" / "train.py").write_text('"""imgcls train: trains it. At\nlength."""\n')
    (tmp_path / "commands" / "help.py").write_text('"""What verbs share: imgcls eval and train."""\n')
    (tmp_path / "tools" / "two" / "command.py").write_text('"""imgcls two: does it twice."""\n')
    assert {name: tuple(verb) for name, verb in find_verbs().items()} == {
        "train": ("imgcls.commands.train", "trains it"),
        "eval": ("imgcls.commands.eval", "tests it"),
        "two": ("imgcls.tools.two.command", "does it twice"),
    }
    assert next(iter(find_verbs())) == "train"


def copied(to: Path) -> Path:
    """Copies what git knows of, and new files that it does not ignore."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(names).split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def delete(root: Path) -> None:
    """Deletes the files, and what documents and presets say of them."""
    for name in DELETED:
        (root / name).unlink()
    preset = root / "conf" / "sweep" / "backbones.yaml"
    preset.write_text(preset.read_text().replace("resnet18,", ""))
    promises = root / "docs" / "reliability.md"
    gone = [name.removeprefix("tests/") for name in DELETED if name.startswith("tests/")]
    rows = promises.read_text().splitlines(keepends=True)
    promises.write_text("".join(row for row in rows if not any(name in row for name in gone)))
    readme = root / "README.md"
    text = re.sub("imgcls pack .*\n", "", readme.read_text()).replace(
        "backbone=resnet18", "backbone=resnet20"
    )
    for word in WORDS:
        assert word in text, word
        text = text.replace(word, "")
    readme.write_text(text)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_is_left_is_whole(tmp_path: Path) -> None:
    """`make lint` and the tests, in a copy without two data sets, two backbones and a verb."""
    root = copied(tmp_path / "copy")
    delete(root)
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    programs = Path(sys.executable).parent
    for command in (
        [str(programs / "ruff"), "check", "."],
        [str(programs / "ruff"), "format", "--check", "."],
        [str(programs / "mypy")],
        [str(programs / "lint-imports")],
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *QUICK],
    ):
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout[-5000:]}{done.stderr[-2000:]}"
    done = subprocess.run(
        [sys.executable, "-m", "imgcls", "pack"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "imgcls pack: there is no such verb" in done.stderr
