"""The private names of Hydra and its launchers that imgcls.sweeps.private touches."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from imgcls.sweeps import private

FAULT = OSError("the node is gone")


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the launchers' logging from opening the log of a run before it again."""
    monkeypatch.setattr(logging.root, "handlers", [])


def gone(*_: Any) -> Any:
    raise FAULT


def launching(launcher: Any) -> Any:
    """Gives a launcher what it has after Hydra's setup."""
    launcher.config = OmegaConf.create(
        {"hydra": {"sweep": {"dir": "sweep"}, "hydra_logging": None, "verbose": False}}
    )
    launcher.task_function = gone
    loader = SimpleNamespace(load_sweep_config=lambda *_: OmegaConf.create({"hydra": {"job": {}}}))
    launcher.hydra_context = SimpleNamespace(config_loader=loader)
    return launcher


def test_a_dead_job_of_slurm_stays_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    class Started:
        """A job in the place of submitit's, which would look for itself in SLURM's queue."""

        def results(self) -> Any:
            return submitit.SlurmJob.results(self)

    class Executor:
        def __init__(self, **_: Any) -> None: ...

        def update_parameters(self, **_: Any) -> None: ...

        def map_array(self, _: Any, overrides: Any, *__: Any) -> Any:
            return [Started() for _ in overrides]

    found = iter([gone, lambda: ["done"]])
    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(submitit.SlurmJob, "results", submitit.SlurmJob.results)  # put back at the end
    monkeypatch.setattr(submitit.Job, "results", lambda job: next(found)())
    private.keep_slurm_jobs_apart()
    launcher = launching(SlurmLauncher(submitit_folder="logs"))
    assert launcher.launch([["a=1"], ["a=2"]], initial_job_idx=0) == [FAULT, "done"]


def test_a_dead_job_of_ray_stays_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from hydra_plugins.hydra_ray_launcher import _core
    from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher

    runs = iter([gone, lambda: "done"])
    monkeypatch.setattr(_core, "ray", ray)  # put back at the end
    monkeypatch.setattr(_core, "start_ray", lambda init: None)
    monkeypatch.setattr(_core, "launch_job_on_ray", lambda *_: next(runs))
    monkeypatch.setattr(ray, "get", lambda run, timeout: run())
    private.keep_ray_jobs_apart()
    launcher = launching(RayLauncher(OmegaConf.create({"init": {}, "remote": {}})))
    assert launcher.launch([["a=1"], ["a=2"]], initial_job_idx=0) == [FAULT, "done"]
