"""Draws the pictures of docs/wandb.md, from what the client of W&B sends to a stand-in for its server.

python docs/wandb_pictures.py     two minutes on two cores; the stand-in is tests/support/wandb_server.py
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml
from terminal import draw

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from support.wandb_server import ENTITY, Run, State, environment, wandb_server  # noqa: E402

BIN = Path(sys.executable).parent


def say(command: str, state: State, **variables: str) -> str:
    """Runs a command as at a terminal; returns what it printed, with the wider lines cut."""
    surroundings = {**os.environ, **environment(state), **variables, "COLUMNS": "160"}
    surroundings["PATH"] = f"{BIN}:{surroundings['PATH']}"
    done = subprocess.run(
        command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=surroundings
    )
    return re.sub(r"\n{3,}", "\n\n", done.stdout.replace(str(BIN) + "/", ""))


def series(run: Run, name: str) -> tuple[list[float], list[float]]:
    """Returns steps and values of a name in a run's history."""
    rows = [row for row in run.history if name in row]
    return [row["trainer/global_step"] for row in rows], [row[name] for row in rows]


def one_run(state: State) -> None:
    words = ["train", "trainer.max_epochs=8", "trainer.log_every_n_steps=4", "hydra.run.dir=run"]
    words += ["recovery.gradient_norm=true", "recovery.flush_seconds=0", "trainer=cpu"]
    surroundings = {**os.environ, **environment(state)}
    process = subprocess.Popen(
        [str(BIN / "imgcls"), *words], env=surroundings, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 5/8"):
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
    process.wait()
    (run,) = state.runs.values()
    stopped = max(row["trainer/global_step"] for row in run.history if "train/loss_step" in row)
    say("imgcls train resume=run", state)
    names = ["train/loss_step", "lr_step", "train/gradient_norm", "val/top1"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 2.8), layout="constrained")
    for cell, name in zip(axes, names, strict=True):
        cell.plot(*series(run, name), color="tab:blue", marker="o" if name == "val/top1" else None)
        cell.axvline(stopped, color="tab:grey", linestyle="--", linewidth=1)
        cell.set(title=name, xlabel="trainer/global_step")
        cell.spines[["top", "right"]].set_visible(False)
    axes[0].annotate(
        "stopped, and resumed",
        (stopped, axes[0].get_ylim()[1]),
        (4, -8),
        textcoords="offset points",
        fontsize=8,
    )
    figure.savefig(HERE / "wandb_curves.png", dpi=90)


def a_sweep(state: State) -> None:
    sweep = "imgcls train -m optimizer.lr=0.001,0.01 seed=0,1 sweep.name=lr trainer.max_epochs=2"
    printed = say(sweep, state, WANDB_MODE="offline")
    lines = [line for line in printed.splitlines() if re.match(r"\[|sweep|job|\d+ |best|compare|study", line)]
    sync = "wandb sync runs/sweeps/lr/*/wandb/offline-run-*"
    uploaded = say(sync, state)
    draw(HERE / "wandb_sweep.svg", [(sweep, "\n".join(lines)), (sync, uploaded)], width=120)
    runs = [run for run in state.runs.values() if run.fields.get("groupName") == "lr"]
    columns_that_differ(sorted(runs, key=lambda run: run.fields["displayName"]))


def columns_that_differ(runs: list[Run]) -> None:
    """Draws the runs as W&B's table does with the columns of the config that differ, and the summary."""
    configs = pd.json_normalize([{k: v for k, v in run.settings.items() if k != "run"} for run in runs])
    configs = configs.loc[:, configs.astype(str).nunique() > 1]
    names = pd.DataFrame(
        [{"name": run.fields["displayName"], "group": run.fields["groupName"]} for run in runs]
    )
    costs = ["parameters", "flops", "images_per_second", "peak_memory_gb"]
    summary = pd.DataFrame([run.summary for run in runs])[
        ["best/val/top1", "best/epoch", "test/top1", *costs]
    ]
    whole = pd.concat([names, configs, summary], axis=1)
    cells = [
        [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in whole.to_numpy(dtype=object)
    ]
    figure, axes = plt.subplots(figsize=(14, 1.7), layout="constrained")
    axes.axis("off")
    table = axes.table(cells, colLabels=list(whole), bbox=(0, 0, 1, 1), cellLoc="right", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(range(whole.shape[1]))
    figure.savefig(HERE / "wandb_columns.png", dpi=90)


def an_agent(state: State) -> None:
    search = yaml.safe_load((HERE.parent / "conf" / "wandb_sweep.yaml").read_text())
    search["command"] += ["trainer=cpu"]
    Path("search.yaml").write_text(yaml.safe_dump(search))
    say("wandb sweep --project imgcls search.yaml", state)
    ((name, sweep),) = state.sweeps.items()
    lrs, epochs = (0.003, 0.00002, 0.03, 0.01), 25
    sweep.trials = [
        {"optimizer.lr": lr, "data.batch_size": 64, "trainer.max_epochs": epochs if lr > 0.00002 else 400}
        for lr in lrs
    ]
    sweep.stops = lambda run: run.name.endswith("trial1") and any("best/val/top1" in r for r in run.history)
    say(f"wandb agent {ENTITY}/imgcls/{name}", state)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for run in (state.runs[one] for one in sweep.begun):
        lr, steps = run.settings["optimizer"]["lr"], series(run, "best/val/top1")
        axes.plot(
            range(1, len(steps[1]) + 1),
            steps[1],
            label=f"lr {lr:g}{', ended early' if run.exit_code else ''}",
        )
    axes.set(xlabel="epoch", ylabel="best/val/top1", xlim=(0, epochs + 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "wandb_agent.png", dpi=90)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for part in (one_run, a_sweep, an_agent):
            with wandb_server() as server:
                part(server)
