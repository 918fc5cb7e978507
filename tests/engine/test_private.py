"""The private names of libraries that the engine touches are there and do what they did."""

import inspect
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torchmetrics import SumMetric

from imgcls.engine import private


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu", max_steps=5, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_amx_as_the_public_name_says() -> None:
    assert private.has_amx() == torch.cpu.get_capabilities().get("amx_tile", False)


def test_the_average_that_lightning_keeps(trainer: Trainer) -> None:
    module = LightningModule()
    module.layer = torch.nn.Linear(2, 2)
    callback = WeightAveraging()
    callback.setup(trainer, module, "fit")
    average = private.averaged_model(callback)
    assert isinstance(average, AveragedModel)
    assert torch.equal(average.module.get_parameter("layer.weight"), module.layer.weight)


def test_each_step_would_share_sigterm(trainer: Trainer) -> None:
    loop = trainer.fit_loop.epoch_loop
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(type(loop).advance)
    assert "broadcast(sigterm_tensor" in inspect.getsource(type(loop)._broadcast_sigterm_tensor)
    private.skip_sigterm_broadcast(trainer)
    loop._broadcast_sigterm_tensor()  # it would look for a process group and, with a device, wait


def test_max_steps_would_restart_in_the_middle_of_an_epoch(trainer: Trainer) -> None:
    trainer.fit_loop.restarting = True
    assert trainer.fit_loop.restarting
    private.count_by_epochs(trainer)
    trainer.fit_loop.restarting = True
    assert not trainer.fit_loop.restarting


def test_a_metric_would_take_itself_for_new() -> None:
    metric = SumMetric(nan_strategy="disable")
    metric.persistent(True)
    metric.load_state_dict({"sum_value": torch.tensor(3.0)})
    assert not metric.update_called
    private.restore_metric(metric, {"sum_value": torch.tensor(3.0)})
    assert metric.update_called and metric.compute() == 3  # with no warning


def test_a_schedule_would_keep_its_last_rates() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = LambdaLR(optimizer, lambda step: 1.0)
    optimizer.param_groups[0]["lr"] = 0.5
    assert schedule.get_last_lr() == [1.0]
    private.set_last_rates(schedule, [0.5])
    assert schedule.get_last_lr() == [0.5] and optimizer.param_groups[0]["lr"] == 0.5


def test_ranks_are_started_and_watched_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.hydra_config import HydraConfig

    for name in ("_hydra_subprocess_cmd", "_launch_process_observer"):
        monkeypatch.setattr(
            subprocess_script, name, getattr(subprocess_script, name)
        )  # put back after the test
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    watched: list[subprocess.Popen[bytes]] = []
    write = "import os, pathlib; pathlib.Path('rank').write_text(os.environ['LOCAL_RANK'])"
    private.start_ranks_with(lambda rank: ([sys.executable, "-c", write], "."), watched.extend)
    launcher = subprocess_script._SubprocessScriptLauncher(
        LightningEnvironment(), num_processes=2, num_nodes=1
    )
    assert launcher.launch(lambda: "trained") == "trained"
    assert [process.wait() for process in watched] == [0] and Path("rank").read_text() == "1"


def test_auto_would_shard_over_nodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mock()
    monkeypatch.setattr("lightning.pytorch.strategies.model_parallel._setup_device_mesh", mesh)
    monkeypatch.setattr(ParallelStrategy, "setup_environment", Mock())
    monkeypatch.setattr(ModelParallelStrategy, "_setup_distributed", Mock())
    monkeypatch.setattr(ModelParallelStrategy, "lightning_module", Mock())
    strategy = ModelParallelStrategy(tensor_parallel_size=1)
    strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * 3, 2
    strategy.setup_environment()
    assert mesh.call_args.args[0] == 2
    private.shard_over_all_devices(strategy)
    strategy.setup_environment()
    assert mesh.call_args.args[0] == 6
