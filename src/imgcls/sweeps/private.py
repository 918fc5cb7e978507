"""Private names of Hydra's launchers that a sweep can't do without, each with its reason. Seen in
hydra-submitit-launcher and hydra-ray-launcher 1.4.0rc3."""

from types import SimpleNamespace
from typing import Any


def keep_slurm_jobs_apart() -> None:
    """Makes Hydra's SLURM launcher return the exception of a dead job in its place. It ends with
    `[j.results()[0] for j in jobs]`: the first dead job would raise, and nobody wait for the others."""
    import submitit

    def results(job: submitit.SlurmJob[Any]) -> list[Any]:
        try:
            return submitit.Job.results(job)
        except Exception as error:
            return [error]

    submitit.SlurmJob.results = results  # type: ignore[method-assign,assignment]


def keep_ray_jobs_apart() -> None:
    """Makes Hydra's Ray launcher return the exception of a dead job in its place. Its `_core.launch` ends
    with `[ray.get(run) for run in runs]`: the first dead job would raise, and nobody wait for the others."""
    import ray
    from hydra_plugins.hydra_ray_launcher import _core

    def get(run: Any) -> Any:
        try:
            return ray.get(run)
        except Exception as error:
            return error

    _core.ray = SimpleNamespace(get=get)  # type: ignore[assignment]


KEEP_APART = {"SlurmLauncher": keep_slurm_jobs_apart, "RayLauncher": keep_ray_jobs_apart}
