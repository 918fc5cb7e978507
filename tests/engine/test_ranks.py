"""What befalls one of two processes that train together ends, or goes on, in both."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from support.command import imgcls

from imgcls.data.digits import Digits

LOSS = """
import os
from pathlib import Path
import torch

steps = 0

class Loss(torch.nn.CrossEntropyLoss):
    def forward(self, logits, targets):
        global steps
        steps += logits.requires_grad  # else it is validation
        loss = super().forward(logits, targets)
        fault, rank = os.environ["FAULT"].split()
        here = os.environ.get("LOCAL_RANK", "0") == rank
        if not logits.requires_grad or not here or steps < 28 or fault == "none":
            return loss
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fault == "kill":
            os.kill(os.getpid(), 9)
        if fault == "once" and steps > 28:
            return loss
        if steps == 28:
            Path("fault.txt").write_text(" ".join(map(str, targets.tolist())))
        return loss * float("nan")
"""


def train(fault: str, *options: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Trains in a process of its own that finds faulty.py here."""
    path = f"{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}"
    return imgcls("train", *options, FAULT=fault, PYTHONPATH=path, timeout=timeout)


def faulty(fault: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Trains in two processes; in the 28th step a fault befalls one of them."""
    Path("faulty.py").write_text(LOSS)
    given = ["trainer=ddp_cpu", "data.batch_size=32", "trainer.max_epochs=3", "logger=csv", "test=false"]
    given += ["hydra.run.dir=run", "loss._target_=faulty.Loss"]
    done = train(fault, *given, *options, timeout=200)
    print(done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    return done


def assert_named() -> None:
    """Checks that nonfinite.txt has the samples of the batch of that process."""
    data = Digits(image_size=8)
    data.setup()
    targets = data.sets["train"].targets
    named = [int(targets[int(name)]) for name in Path("run/nonfinite.txt").read_text().split()]
    assert len(named) == 32 and named == [int(target) for target in Path("fault.txt").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_loss_that_is_not_finite(rank: str) -> None:
    done = faulty(f"always {rank}")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert "the loss is not finite since batch 27 (epoch 2, batch 8 of it, learning rate 0.00" in line
    assert_named()
    assert json.loads(Path("run/status.json").read_text())["status"] == "failed"
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 20


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "status", "skips"), [("once 1", 0, 1), ("always 1", 1, 3)])
def test_batches_are_left_out(fault: str, status: int, skips: int) -> None:
    done = faulty(fault, "recovery.on_nonfinite=skip")
    assert done.returncode == status and done.stdout.count("back to the last checkpoint") == skips
    assert len(done.stderr.strip().splitlines()) == status
    if status == 0:
        assert_named()
        last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
        assert last["skipped_batches"] == [[1, 7]] and last["global_step"] == 60


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["memory 0", "memory 1", "kill 1"])
def test_one_that_ends(fault: str) -> None:
    """The other doesn't wait for it, and the run can go on."""
    done = faulty(fault)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[0]
    assert (
        "try data.batch_size=16 trainer.accumulate_grad_batches=2"
        if "memory" in fault
        else "process 2 of this training ended (killed"
    ) in line
    assert json.loads(Path("run/status.json").read_text())["status"] == "failed"
    assert train("none 0", "resume=run").returncode == 0
