"""What all tests share: the command run as users run it, and small sets of pictures."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pictures import write_picture
from support.runs import SHORT

from imgcls.engine.signals import STOPPED
from imgcls.tasks.task import Task


@pytest.fixture(scope="session", autouse=True)
def imported() -> Iterator[None]:
    """Imports what most tests need, and takes it out of what the garbage collector looks through: it collects
    after each training, of which there are hundreds here."""
    import imgcls.commands.train  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in an empty folder, with W&B's files and the cache in it; the log files that a command
    has opened in this process are closed after it, or a later test would find them unclosed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield
    for handler in [one for one in logging.root.handlers if isinstance(one, logging.FileHandler)]:
        logging.root.removeHandler(handler)
        handler.close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command in this process: to import torch and Lightning again takes longer than most tests."""
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
        assert isinstance(message, str), (
            f"ended with {message!r}: {capsys.readouterr()}"
        )  # exit status 1, on stderr
        assert "\n" not in message
        return message

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 3 classes with 12 JPEG pictures each, and no splits."""
    for label, name in enumerate(("cat", "dog", "fox")):
        for i in range(12):
            write_picture(tmp_path / "pictures" / name / f"{i:02}.jpg", seed=100 * label + i)
    return tmp_path / "pictures"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `imgcls train` in this process; at batch `stop`, counted over all epochs, it gets a SIGTERM."""
    from hydra.core.global_hydra import GlobalHydra

    from imgcls.__main__ import main

    step = Task.training_step

    def run(*arguments: str, stop: int | None = None, number: int = signal.SIGTERM) -> Any:
        def stopping(self: Task, batch: Any, batch_idx: int) -> Any:
            if self.current_epoch * self.trainer.num_training_batches + batch_idx == stop:
                os.kill(os.getpid(), number)
            return step(self, batch, batch_idx)

        GlobalHydra.instance().clear()
        monkeypatch.setattr(Task, "training_step", stopping)
        monkeypatch.setattr(sys, "argv", ["imgcls", "train", *arguments])
        try:
            return main()
        except SystemExit as ended:
            return ended.code

    return run


@pytest.fixture
def cut(train: Callable[..., Any]) -> Path:
    """A run of three epochs that was stopped in its second."""
    assert train(*SHORT, "test=false", "hydra.run.dir=cut", stop=27) == STOPPED
    return Path("cut")
