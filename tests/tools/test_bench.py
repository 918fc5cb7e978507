"""imgcls bench, and that a step of a training waits for nothing."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.command import imgcls
from torch import nn
from torch.profiler import ProfilerActivity, profile

from imgcls.backbones.build import build_network
from imgcls.errors import UserError
from imgcls.tools.bench.meter import count_reads, flops

SHORT = ("bench.seconds=0.1", "bench.rounds=2", "data.batch_size=16")


def test_figures_of_one_run(tmp_path: Path) -> None:
    done = imgcls("bench", *SHORT, "callbacks=ema", f"json={tmp_path}/out/figures.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    floor, loader, train = (figures[f"{name}_images_per_second"] for name in ("floor", "loader", "train"))
    assert 0 < train < 1.2 * floor and loader > train
    assert figures["ratio"] == pytest.approx(train / floor, rel=0.5)
    assert figures["device_reads_per_step"] == 0  # with the default loggers, metrics and progress bar
    assert figures["parameters"] == 288_170 and figures["peak_memory_bytes"] > 1e8
    for words in (
        "bare network",
        "loader alone",
        "imgcls train",
        "bound by",
        "reads from the device    0 a step",
    ):
        assert words in done.stdout
    assert "epoch" not in done.stdout  # the training's own lines
    (run,) = Path("runs/bench").iterdir()
    assert json.loads((run / "bench.json").read_text()) == figures
    assert list(run.glob("wandb/offline-run-*")) and not (run / "checkpoints").exists()


@pytest.mark.slow
def test_a_table_over_backbones(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    here("bench", "-m", "backbone=simple_cnn,resnet20", *SHORT, "logger=csv")
    table = capsys.readouterr().out.rpartition("GFLOPs")[2]
    assert "simple_cnn" in table and "resnet20" in table and "0.29 M" in table and "0.27 M" in table


class Fails(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        raise UserError("it fails within the turns")


def test_an_error_within_the_turns_is_shown(said: Callable[..., str]) -> None:
    streams = sys.stdout, sys.stderr
    message = said("bench", *SHORT, "logger=csv", "+callbacks.fails._target_=tools.test_bench.Fails")
    assert message == "imgcls bench: it fails within the turns"
    assert (sys.stdout, sys.stderr) == streams  # no bar has them still


def test_a_linear_probe(here: Callable[..., None]) -> None:
    """Its features are computed once, so that the bare network is the head."""
    here("bench", *SHORT, "logger=csv", "finetune=linear_probe", "augment=none", "json=out.json")
    assert json.loads(Path("out.json").read_text())["floor_images_per_second"] > 0


def test_wrong_settings_are_said() -> None:
    done = imgcls("bench", "bench.rounds=0")
    assert done.returncode == 1 and "bench.rounds=0" in done.stderr and done.stderr.count("\n") == 1


def test_flops_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2))
    assert flops(network, 1, 3, 8, 8) == 2 * (64 * 4 * 27 + 4 * 64 * 2)
    assert all(p.device.type == "cpu" for p in network.parameters())


@pytest.mark.parametrize("read", [torch.Tensor.item, bool, torch.nonzero, lambda x: x[x > 0], torch.unique])
def test_reads_are_seen(read: Any) -> None:
    value = torch.ones(1)
    with profile() as seen:
        value = value * 2
    assert count_reads(seen) == 0
    with profile() as seen:
        read(value)
    assert count_reads(seen) >= 1


def test_fused_steps_are_no_reads() -> None:
    network = build_network({"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}, 3, 1, 8)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    with profile() as seen:
        optimizer.step()
    assert count_reads(seen) == 0


class Reads(Callback):
    """Counts the reads from the device in most batches of an epoch's training and of its validation."""

    seen: profile

    def look(self, part: str, place: int) -> None:
        if place == 1:
            self.seen = profile(activities=[ProfilerActivity.CPU])
            self.seen.start()
        elif place == 7:
            self.seen.stop()
            assert "aten::convolution" in {event.key for event in self.seen.key_averages()}
            Path(f"reads_{part}.txt").write_text(str(count_reads(self.seen)))

    def on_train_batch_start(self, trainer: Trainer, task: LightningModule, batch: Any, place: int) -> None:
        self.look("train", place)

    def on_validation_batch_start(
        self, trainer: Trainer, task: LightningModule, batch: Any, place: int, dataloader_idx: int = 0
    ) -> None:
        self.look("val", place)


@pytest.mark.parametrize("reading", [False, True])
def test_added_metrics_wait_for_the_end_of_an_epoch(
    reading: bool, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In validation and in training no batch is waited for; `reading`: the count sees one that is."""
    if reading:
        monkeypatch.setattr("imgcls.tasks.metrics.HELD", 0)
    epoch = (
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "data.batch_size=16",
        "test=false",
        "logger=csv",
    )
    counting = "+callbacks.reads._target_=tools.test_bench.Reads"
    here("train", "metrics=[auroc,mcc,kappa]", *epoch, "hydra.run.dir=run", counting)
    assert Path("reads_train.txt").read_text() == "0"
    assert (int(Path("reads_val.txt").read_text()) > 0) == reading
    assert "val/auroc" in Path("run/metrics.csv").read_text()


class NoWaits(Callback):
    """Makes CUDA refuse to wait for the device in the steps from the 4th to the 12th of an epoch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.fit_loop.batch_idx
        torch.cuda.set_sync_debug_mode("error" if 3 <= step < 12 else "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from imgcls.__main__ import main

    arguments = [
        "train",
        "data.batch_size=64",
        "trainer.max_epochs=2",
        "+callbacks.no_waits._target_=tools.test_bench.NoWaits",
    ]
    monkeypatch.setattr(sys, "argv", ["imgcls", *arguments])
    main()


@pytest.mark.slow
def test_the_first_step_comes_soon(tmp_path: Path) -> None:
    """Printed, and bounded loosely: most of it is the import of torch, torchvision and Lightning."""
    script = tmp_path / "first_step.py"
    script.write_text(
        "import time\nfrom lightning.pytorch import Callback\nclass FirstStep(Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        print('step', trainer.global_step, time.time(), flush=True)\n"
    )
    times = []
    for _ in range(3):
        start = time.time()
        done = imgcls(
            "train", "+callbacks.first._target_=first_step.FirstStep", "debug=fast",
            PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        )  # fmt: skip
        times.append(
            next(float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("step 1 "))
            - start
        )
    print(f"first step after {sorted(times)[1]:.1f} s")
    assert sorted(times)[1] < 20
