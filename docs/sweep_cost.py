"""What a sweep costs beyond its trainings: seconds a trial, and the memory of the process after each.

python docs/sweep_cost.py [trials]     in an empty folder; prints the figures of docs/scaling.md
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from imgcls.__main__ import main
from imgcls.engine import recovery as fitting
from imgcls.loggers import wandb as loggers

trials = int(sys.argv[1]) if len(sys.argv) > 1 else 50
marks, fits = [], []
close, fit = loggers.close_wandb, fitting.fit_once


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def timed_fit(*arguments: object) -> None:
    begin = time.perf_counter()
    fit(*arguments)  # type: ignore[arg-type]
    fits.append(time.perf_counter() - begin)


def marked_close(*arguments: object) -> None:
    close(*arguments)  # type: ignore[arg-type]
    marks.append((HydraConfig.get().job.num, time.perf_counter(), resident()))


fitting.fit_once, loggers.close_wandb = timed_fit, marked_close
sweep = f"sweep=random sweep.n_trials={trials} optimizer.lr=tag(log,interval(1e-4,1e-2))"
each = "trainer=cpu trainer.max_epochs=5 logger=csv test=false"
sys.argv = ["imgcls", "train", "-m", *sweep.split(), *each.split()]
main()
gaps = [b[1] - a[1] - seconds for a, b, seconds in zip(marks, marks[1:], fits[1:], strict=False)]
inside = [json.loads(path.read_text())["seconds"] for path in Path("runs/sweeps").glob("*/*/status.json")]
print(f"{trials} trials of {statistics.median(fits):.2f} s")
print(f"beyond the training, a trial: median {statistics.median(gaps):.3f} s, most {max(gaps):.3f} s")
print(f"  of it in the training's own record: {statistics.median(inside) - statistics.median(fits):.3f} s")
for number in (5, trials):
    print(f"resident after trial {number}: {marks[number - 1][2]:.0f} MB")
