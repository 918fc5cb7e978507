"""Trainings that are killed at random moments and resumed end with the bits of one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import ROOT
from support.runs import assert_same_run

COMMON = [
    "trainer.max_epochs=4", "data.batch_size=64", "augment=mix", "augment.erase=0.2", "logger=csv",
    "callbacks=ema", "trainer.log_every_n_steps=3", "recovery.every_minutes=0.002",
]  # fmt: skip


def attempts(
    kills: int, seed: int, steps: int, numbers: list[int], common: list[str]
) -> list[dict[str, Any]]:
    """Returns the undisturbed run, and one that gets signals at random moments until it is done."""
    chance = random.Random(seed)
    listed: list[dict[str, Any]] = [
        {"arguments": [*common, "hydra.run.dir=whole"], "event": None, "count": 0, "signal": 0}
    ]
    for kill in range(kills):
        event = chance.choice(["step", "step", "validation", "writing", "renaming"])
        most = {"step": max(4 * steps // kills, 3), "validation": 3, "writing": 2, "renaming": 6}[event]
        arguments = [*common, "hydra.run.dir=cut", "resume=auto"] if kill < 2 or kill % 2 else ["resume=cut"]
        listed.append(
            {
                "arguments": arguments,
                "event": event,
                "count": chance.randint(1, most),
                "signal": chance.choice(numbers),
            }
        )
    return [
        *listed,
        {"arguments": [*common, "hydra.run.dir=cut", "resume=auto"], "event": None, "count": 0, "signal": 0},
    ]


def chaos(listed: list[dict[str, Any]], timeout: float) -> list[int]:
    Path("attempts.json").write_text(json.dumps(listed))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "chaos.py"), "attempts.json"],
        capture_output=True, text=True, timeout=timeout, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    statuses: list[int] = json.loads(done.stdout.splitlines()[-1])
    assert statuses[0] == 0 and statuses[-1] == 0, (statuses, done.stderr[-3000:])
    return statuses


@pytest.mark.parametrize(
    ("number", "kills", "seed"),
    [
        (signal.SIGKILL, 5, 0),
        pytest.param(signal.SIGKILL, 20, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 20, 2, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(number: int, kills: int, seed: int) -> None:
    statuses = chaos(attempts(kills, seed, 20, [number], COMMON), 1200)
    ended = {-signal.SIGKILL} if number == signal.SIGKILL else {75}
    assert ended <= set(statuses[1:-1]) <= ended | {0}, statuses
    assert_same_run(Path("whole"), Path("cut"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_in_two_processes(number: int) -> None:
    common = [*COMMON, "trainer=ddp_cpu", "data.batch_size=32"]
    statuses = chaos(attempts(20 if number == signal.SIGKILL else 6, 3, 20, [number], common), 3000)
    assert (-number if number == signal.SIGKILL else 75) in statuses, statuses
    assert_same_run(Path("whole"), Path("cut"))
