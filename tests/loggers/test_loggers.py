"""Whatever becomes of W&B, the training goes on.

Its server may be gone, slow or refusing, its process killed, its disk full.
"""

import csv
import gc
import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import imgcls

from imgcls.tasks.classification import ImageClassifier

OPTIONS = ["data.batch_size=64", "trainer.max_epochs=3", "test=false", "hydra.run.dir=run"]
BUCKET = {
    "id": "x",
    "name": "run",
    "displayName": "run",
    "sweepName": None,
    "historyLineCount": 0,
    "config": "{}",
    "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
}
# of W&B's GraphQL interface, as far as a run needs it to begin
ANSWERS = {"upsertBucket": {"upsertBucket": {"bucket": BUCKET, "inserted": True}}}

# W&B's own process, where a test has killed it; it is collected before another module's tests begin
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


class Server(http.server.ThreadingHTTPServer):
    """Stands for W&B's: it answers, or hangs, or fails."""

    daemon_threads, block_on_close = True, False
    answers = "hang"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def refuse(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.answers == "hang":
            self.server.ended.wait()
        asked = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        data = next((data for name, data in ANSWERS.items() if name.encode() in asked), {})
        answer = json.dumps({"data": data}).encode()
        self.send_response(500 if self.server.answers == "500" else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that is W&B's for this process, and a key that looks like one."""
    import wandb

    server = Server()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    wandb.teardown()
    yield server
    server.ended.set()
    server.refuse()
    wandb.teardown()


def rows() -> list[dict[str, str]]:
    with Path("run/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Returns the lines of the terminal that speak of W&B."""
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return [
        line for line in (shown.out + shown.err).splitlines() if "Weights & Biases" in line or "Wandb" in line
    ]


@pytest.mark.parametrize("answers", ["refuse", "hang", "500"])
def test_a_server_that_is_not_there(
    train: Callable[..., Any], server: Server, capsys: pytest.CaptureFixture[str], answers: str
) -> None:
    if answers == "refuse":
        server.refuse()
    server.answers = answers
    start = time.monotonic()
    assert train(*OPTIONS, "logger.wandb.timeout=1") is None
    assert time.monotonic() - start < 10
    (line,) = warnings(capsys)
    assert "logging to it goes on offline" in line
    assert [row["epoch"] for row in rows()] == ["0", "1", "2"] and all(row["val/top1"] for row in rows())
    assert len(list(Path("run/wandb").glob("offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("answers", ["refuse", "hang", pytest.param("500", marks=pytest.mark.slow)])
def test_a_server_that_goes_away(
    train: Callable[..., Any],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: str,
) -> None:
    """In the middle of a run: what is not uploaded at its end stays on the disk."""
    server.answers = "all"
    at_step(
        monkeypatch, 25, server.refuse if answers == "refuse" else lambda: setattr(server, "answers", answers)
    )
    assert train(*OPTIONS, "logger.wandb.finish_timeout=1", "logger.wandb.log_data=false") is None
    (line,) = warnings(capsys)
    assert "Timed out finishing run" in line
    assert len(rows()) == 3 and len(list(Path("run/wandb").glob("run-*/*.wandb"))) == 1


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Arranges that something happens in a step of the training."""
    normalise = ImageClassifier.normalise

    def acting(self: ImageClassifier, *arguments: Any) -> Any:
        if self.training and self.trainer.global_step == step:
            action()
        return normalise(self, *arguments)

    monkeypatch.setattr(ImageClassifier, "normalise", acting)


def kill_wandb() -> None:
    """Kills W&B's process, a child of this one."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listed.splitlines() if "wandb-core" in line]
    (own,) = [int(pid) for pid, parent, _ in found if int(parent) == os.getpid()]
    os.kill(own, signal.SIGKILL)
    time.sleep(0.2)


@pytest.mark.filterwarnings(
    "ignore:subprocess .* is still running:ResourceWarning"
)  # the one that was killed
def test_its_process_is_killed(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that comes after it in a sweep has a new one."""
    with monkeypatch.context() as patched:
        at_step(patched, 25, kill_wandb)
        assert train(*OPTIONS, "test=true") is None
    (line,) = warnings(capsys)
    assert line.endswith("the run goes on without it")
    assert len(rows()) == 3
    gc.collect()
    assert train(*OPTIONS, "hydra.run.dir=next", "trainer.max_epochs=1") is None
    assert warnings(capsys) == [] and list(Path("next/wandb").glob("offline-run-*/*.wandb"))


def test_no_key(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert train(*OPTIONS, "trainer.max_epochs=1") is None
    assert warnings(capsys) == [] and list(Path("run/wandb").glob("offline-run-*/*.wandb"))
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert train(*OPTIONS, "overwrite=true", "trainer.max_epochs=1") is None
    (line,) = warnings(capsys)
    assert "logging to it goes on offline" in line


@pytest.mark.parametrize("size", ["4k", pytest.param("100k", marks=pytest.mark.slow)])
def test_a_full_disk(train: Callable[..., Any], capsys: pytest.CaptureFixture[str], size: str) -> None:
    place = Path("run/wandb").absolute()
    place.mkdir(parents=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        assert train(*OPTIONS, "test=true") is None
        assert len(rows()) == 3 and Path("run/test/index.html").is_file()
        assert len(warnings(capsys)) == (size == "4k")  # with more room, its process alone finds no more
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("given", [["logger=[]"], ["logger=wandb", "callbacks=ema"]], ids=" ".join)
def test_the_table_is_there_whatever_logs(train: Callable[..., Any], given: list[str]) -> None:
    """And says which epoch was best, also of a run that chose no logger; the checkpoint is of that epoch."""
    from imgcls.runs.read import read_run
    from imgcls.runs.run_files import optimised

    assert train(*OPTIONS, *given, "optimized_metric=[val/loss,val/top1]") is None
    losses = [float(row["val/loss"]) for row in rows()]
    best = losses.index(min(losses))
    assert len(losses) == 3
    assert optimised(Path("run"), ["val/loss", "val/top1"]) == [losses[best], float(rows()[best]["val/top1"])]
    assert read_run(Path("run"))["best/val/loss"] == losses[best]
    assert torch.load("run/checkpoints/best.ckpt", weights_only=True)["epoch"] == best


@pytest.mark.parametrize(
    ("logger", "answers"), [("MLFlow", "refuse"), ("MLFlow", "hang"), ("Trackio", "hang")]
)
def test_another_logger_that_gets_no_answer(
    train: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    logger: str,
    answers: str,
) -> None:
    """MLflow or trackio at an address where nobody is: it is left alone after a while, with one line."""
    monkeypatch.setattr("imgcls.loggers.unharmed.PATIENCE", 1.0)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if answers == "hang":
            nobody.listen()  # connections are taken, and nothing is answered
        key = "mlflow.tracking_uri" if logger == "MLFlow" else "trackio.server_url"
        address = f"logger.{key}='http://127.0.0.1:{nobody.getsockname()[1]}?write_token=x'"
        start = time.monotonic()
        assert train(*OPTIONS, f"logger=[csv,{logger.lower()}]", address, "trainer.max_epochs=1") is None
        assert time.monotonic() - start < 30
    shown = capsys.readouterr()
    lines = [line for line in (shown.out + shown.err).splitlines() if f"{logger}Logger" in line]
    assert lines == [f"{logger}Logger: no answer within 1 s; the run goes on without it"]
    assert "epoch 1/1" in shown.out  # what is printed meanwhile is seen
    assert len(rows()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["refuse", "hang", "500"])
def test_as_used(server: Server, answers: str) -> None:
    """With the default times: status 0, one warning, and less than 10 s more than with the CSV alone."""
    if answers == "refuse":
        server.refuse()
    server.answers = answers
    seconds = {}
    for logger in ("[csv]", "[csv,wandb]"):
        start = time.monotonic()
        done = imgcls("train", *OPTIONS, f"logger={logger}", "overwrite=true")
        seconds[logger] = time.monotonic() - start
        assert done.returncode == 0 and len(rows()) == 3, done.stderr
    assert (done.stdout + done.stderr).count("Weights & Biases") == 1
    assert seconds["[csv,wandb]"] - seconds["[csv]"] < 10, seconds
