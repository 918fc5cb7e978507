"""The record of a run: code that was not committed, new files among it, and what is left out."""

import json
import subprocess
from pathlib import Path

import pytest

from imgcls.runs import record as run
from imgcls.runs.record import git_state, write_record
from imgcls.tools.reproduce import uncommitted


def git(*words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a commit, one change, and files that it does not know."""
    (tmp_path / "code" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "code")
    Path("old.py").write_text("a = 1\n")
    Path(".gitignore").write_text("secret.py\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    Path("old.py").write_text("a = 2\n")
    for name in ("new.py", "sub/it's [ü].yaml", "secret.py"):
        Path(name).write_bytes(b"b = 3\r\nc = 4\n")
    Path("weights.bin").write_bytes(bytes(range(256)) * 10)
    return Path.cwd()


def test_a_clone_becomes_what_was_trained(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder in the repository; its index stays as it was."""
    monkeypatch.chdir("sub")
    before = git("status", "--porcelain")
    write_record(repository / "runs" / "one", {}, {})
    assert git("status", "--porcelain").splitlines() == sorted([*before.splitlines(), "?? runs/"])
    clone = repository.parent / "clone"
    git("clone", "-q", str(repository), str(clone))
    monkeypatch.chdir(clone)
    git("apply", str(repository / "runs" / "one" / "git.diff"))
    for name in ("old.py", "new.py", "sub/it's [ü].yaml", "weights.bin"):
        assert Path(name).read_bytes() == (repository / name).read_bytes()
    assert not Path("secret.py").exists() and not Path("runs").exists()


def test_run_directories_are_not_code(repository: Path) -> None:
    for name in ("runs/one", "elsewhere/two"):
        write_record(Path(name), {}, {})
        Path(name, "metrics.csv").write_text("epoch\n")
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("a: 1\n")
    diff = git_state(Path.cwd(), Path("runs/one").absolute())["diff"]
    assert "metrics.csv" not in diff and "runs" not in diff and "mine/config.yaml" in diff


def test_what_is_left_out_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too large, too many, a repository in it; code goes first."""
    monkeypatch.setattr(run, "NEW_FILE", 2000)
    monkeypatch.setattr(run, "NEW_FILES", 4)
    Path("inner").mkdir()
    subprocess.run(["git", "init", "-q", "inner"], check=True)
    Path("inner/a.py").write_text("")
    for i in range(6):
        Path(f"{i}.txt").write_text("x" * i)
    state = write_record(Path("runs"), {}, {})
    assert "left_out" not in state and "diff" not in state
    left_out = json.loads(Path("runs/environment.json").read_text())["git"]["left_out"]
    names = sorted(name.split()[0] for name in left_out)
    assert names == ["2.txt", "3.txt", "4.txt", "5.txt", "inner/", "weights.bin"]
    diff = Path("runs/git.diff").read_text()
    assert "new.py" in diff and "sub/it" in diff and "0.txt" in diff and "weights.bin" not in diff
    (line,) = caplog.messages
    assert line.startswith("git.diff leaves out what git does not know: ") and line.endswith(
        " and 3 more; commit it, or ignore it"
    )


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {}


def test_what_a_reproduction_says_of_the_code(repository: Path) -> None:
    Path("large.npy").write_bytes(bytes(2_000_000))
    write_record(Path("runs/one"), {}, {})
    Path("new.py").write_text("b = 5\n")
    Path("weights.bin").unlink()
    write_record(Path("runs/two"), {}, {})
    assert uncommitted(Path("runs/one"), Path("runs/two")) == [
        "new.py has changed since",
        "weights.bin is not there as git.diff has it",
        "large.npy (2.0 MB) was there, and is not in git.diff",
    ]
    assert uncommitted(Path("runs/two"), Path("runs/two")) == [
        "large.npy (2.0 MB) was there, and is not in git.diff"
    ]
