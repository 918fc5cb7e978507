"""What all tests share: the command run as users run it, and small sets of pictures."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
os.environ |= {
    "OMP_NUM_THREADS": "1",  # several tests run at a time: threads of each on all cores would wait for one another
    "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off",
    "WANDB_X_DISABLE_STATS": "true", "WANDB_X_DISABLE_MACHINE_INFO": "true",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty folder, with W&B's files and the cache in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))


def imgcls(*arguments: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    environment = {**os.environ, "COLUMNS": "140", **variables}
    command = [sys.executable, "-m", "imgcls", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command in this process: no second import of torch and Lightning, which takes longer than most tests."""
    from hydra.core.global_hydra import GlobalHydra

    from imgcls.__main__ import main

    def run(*arguments: str) -> None:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["imgcls", *arguments])
        main()

    return run


@pytest.fixture
def said(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command in this process and returns the line that it ends with; fails where it ends well."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            here(*arguments)
        message = ended.value.code
        assert isinstance(message, str), f"ended with {message!r}: {capsys.readouterr()}"  # exit status 1, on stderr
        assert "\n" not in message
        return message

    return run


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Path:
    """Writes a picture of coloured squares, in the format of the path's suffix."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 3 classes with 12 JPEG pictures each, and no splits."""
    for label, name in enumerate(("cat", "dog", "fox")):
        for i in range(12):
            write_picture(tmp_path / "pictures" / name / f"{i:02}.jpg", seed=100 * label + i)
    return tmp_path / "pictures"
