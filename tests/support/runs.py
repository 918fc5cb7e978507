"""Runs: trained, written by hand, read back, and compared with one another."""

import copy
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from support.composed import composed

SHORT = ["logger=csv", "data.batch_size=64", "trainer.log_every_n_steps=3", "trainer.max_epochs=3"]


TINY = ("trainer=cpu", "trainer.limit_train_batches=2", "trainer.max_epochs=2", "logger=csv", "test=false")


def jobs(folder: Path) -> list[Path]:
    """The jobs' directories, by number."""
    found = [path for path in folder.iterdir() if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.partition("_")[0]))


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What a training came to, all but times: the weights in its last checkpoint, and the metrics."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    table = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return checkpoint["state_dict"], [
        {k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in table
    ]


def same(one: Path, other: Path) -> bool:
    (weights, rows), (others, other_rows) = outcome(one), outcome(other)
    return rows == other_rows and all(
        torch.equal(weights[name], others[name]) for name in {**weights, **others}
    )


UNLIKE = (
    "config",
    "images_per_second",
    ".seconds",
    "Throughput",
    "dirpath",
    "best_model_path",
    "best_k_models",
    "kth_best_model_path",
    "current_score",
)


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Returns where two checkpoints differ, but for times and names of folders."""
    if place.endswith(UNLIKE):
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        lacking = [
            f"{place}.{key} is in one" for key in one.keys() ^ other.keys() if not f"{key}".endswith(UNLIKE)
        ]
        return lacking + [
            d
            for key in one.keys() & other.keys()
            for d in differences(one[key], other[key], f"{place}.{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            d
            for i, pair in enumerate(zip(one, other, strict=True))
            for d in differences(*pair, f"{place}.{i}")
        ]
    same = (
        torch.equal(one, other)
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        else one == other
    )
    return [] if same else [place]


def assert_same_run(one: Path, other: Path) -> None:
    """Checks that two runs have the same checkpoints, metrics and test, to the last bit."""
    for name in ("last.ckpt", "best.ckpt"):
        loaded = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (one, other)]
        assert differences(*loaded) == [], name
    rows = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (one, other)]
    for row in (row for table in rows for row in table):
        del row["images_per_second"], row["seconds"]
    assert rows[0] == rows[1]
    tests = [run / "test" / "metrics.json" for run in (one, other)]
    assert tests[0].exists() == tests[1].exists() and (
        not tests[0].exists() or tests[0].read_text() == tests[1].read_text()
    )


def read_back(folder: Path) -> dict[str, Any]:
    """Returns what a run directory's one offline run says: run, history, summary, exit status, artifacts."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {
        "history": [],
        "summary": {},
        "artifacts": [],
        "exit": None,
        "run": {},
        "config": {},
    }
    found["kinds"] = set()
    for record in map(json.loads, done.stdout.splitlines()):
        kind = record["type"]
        found["kinds"].add(kind)
        if kind == "run":
            found["run"] |= record["run"]
            found["config"] |= record["run"].get("config", {}).get("update", {})
        elif kind == "config":
            found["config"] |= record["config"].get("update", {})
        elif kind == "summary":
            found["summary"] |= record["summary"].get("update", {})
        elif kind == "history":
            found["history"].append(record["history"]["item"])
        elif kind == "artifact":
            found["artifacts"].append(record["artifact"])
        elif kind == "exit":
            found["exit"] = record["exit"].get("exit_code", 0)
    return found


Here = Callable[..., None]


base = cache(composed)


def write_run(path: Path, top1: float = 0.9, status: str = "finished", epochs: int = 3, **given: Any) -> Path:
    """Writes what a training leaves behind. `given`: optimizer__lr=0.1, seed=3, backbone="resnet20"."""
    config = copy.deepcopy(base())
    for key, value in given.items():
        *groups, name = key.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
    if backbone := given.get("backbone"):
        config["backbone"] = {
            "_target_": f"imgcls.{backbone}",
            **({"depth": 20} if backbone != "simple_cnn" else {"width": 8}),
        }
        config["names"]["backbone"] = backbone
    config |= {"run_dir": str(path)}
    config["names"]["run"] = ",".join(f"{key.replace('__', '.')}={value}" for key, value in given.items())
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rows = [
        f"{e},{10 * e + 9},{2 - e / 10},{top1 - 0.01 * abs(e - 1)},{100 + e}" for e in range(epochs)
    ]  # best: epoch 1
    (path / "metrics.csv").write_text(
        "\n".join(["epoch,step,val/loss,val/top1,images_per_second", *rows, ""])
    )
    (path / "status.json").write_text(
        json.dumps({"status": status, "seconds": 100 * top1, "parameters": int(1e6 * top1)})
    )
    if status == "finished":
        (path / "test").mkdir()
        (path / "test" / "metrics.json").write_text(json.dumps({"test/top1": top1 - 0.05}))
    environment = {
        "command": "imgcls train",
        "packages": {"torch": "2.11", "timm": "1.0"},
        "git": {"commit": "abc"},
        "data": {"train": "12"},
    }
    (path / "environment.json").write_text(json.dumps(environment))
    return path


def write_sweep(folder: Path, seeds: int = 3) -> Path:
    """Writes runs of two backbones and two rates, each with some seeds: resnet20 is better by 0.05, and more
    by the seed."""
    for i, (backbone, lr, seed) in enumerate(
        (b, lr, s) for b in ("simple_cnn", "resnet20") for lr in (0.001, 0.1) for s in range(seeds)
    ):
        top1 = (
            0.8
            + 0.05 * (backbone == "resnet20")
            + 0.01 * (lr == 0.1)
            + 0.001 * (seed + seed**2 * (backbone == "resnet20"))
        )
        write_run(
            folder / f"{i}_backbone={backbone},lr={lr},seed={seed}",
            top1,
            backbone=backbone,
            optimizer__lr=lr,
            seed=seed,
        )
    return folder
