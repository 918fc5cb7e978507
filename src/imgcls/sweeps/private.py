"""Private names of Hydra's launchers that a sweep can't do without, each with its reason. Seen in
hydra-submitit-launcher, hydra-ray-launcher and hydra-joblib-launcher 1.4.0rc3."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from imgcls.engine.signals import SIGNALS, Stopped


class Submitting:
    """Lets one thread at a time hand a job to SLURM or Ray. Hydra composes the job's config there, in this
    process, with state of its own that two threads must not share. The wait for the job's end is free."""

    def __init__(self) -> None:
        self.lock, self.mine = threading.Lock(), threading.local()

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        if kind in KEEP_APART:
            self.lock.acquire()
            self.mine.held = True
        try:
            yield
        finally:
            self.over()

    def over(self) -> None:
        """Says that this thread has submitted, and waits from now on."""
        if getattr(self.mine, "held", False):
            self.mine.held = False
            self.lock.release()


SUBMITTING = Submitting()


def keep_slurm_jobs_apart() -> None:
    """Makes Hydra's SLURM launcher return the exception of a dead job in its place. It ends with
    `[j.results()[0] for j in jobs]`: the first dead job would raise, and nobody wait for the others."""
    import submitit

    def results(job: submitit.SlurmJob[Any]) -> list[Any]:
        SUBMITTING.over()
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
        SUBMITTING.over()
        while SIGNALS.asked is None:  # a thread that waited on would make Ray end the process as it likes
            try:
                return ray.get(run, timeout=0.5)
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception as error:
                return error
        return Stopped()

    _core.ray = SimpleNamespace(get=get)  # type: ignore[assignment]


RAY = "RayLauncher"
KEEP_APART = {"SlurmLauncher": keep_slurm_jobs_apart, RAY: keep_ray_jobs_apart}


def capacity(kind: str, launcher: Any) -> int:
    """Returns how many jobs a launcher of Hydra's can run at once: none says it."""
    if kind == "JoblibLauncher":
        from joblib import effective_n_jobs  # type: ignore[import-untyped]

        return int(effective_n_jobs(launcher.joblib.get("n_jobs")))
    if kind == RAY:
        return ray_capacity(launcher.ray_cfg)
    params = getattr(launcher, "params", {})
    return int(params.get("array_parallelism") or 1)


def ray_capacity(config: Any) -> int:
    """Returns how many jobs a cluster of Ray's has the cores and GPUs for, as it is now."""
    import ray
    from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

    start_ray(config.init)
    there, wanted = ray.cluster_resources(), {"CPU": config.remote.get("num_cpus", 1)}
    wanted["GPU"] = config.remote.get("num_gpus", 0)
    return max(1, int(min(there.get(name, 0) / each for name, each in wanted.items() if each)))
