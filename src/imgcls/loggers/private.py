"""Private names of W&B that a run can't do without, each with its reason. Seen in wandb 0.31.0."""

import sys
from contextlib import suppress
from typing import Any

import wandb


def leave_out_job_inputs() -> None:
    """Keeps `wandb.init` from importing W&B Launch, 0.7 s; where that was imported, there may be inputs."""
    if "wandb.sdk.launch" not in sys.modules:
        wandb.Run._detect_and_apply_job_inputs = lambda run: None  # type: ignore


def remove_import_hooks(run: Any) -> None:
    """Takes W&B's hooks out of Python's import system: imports would speak to its process, maybe gone."""
    with suppress(AttributeError):  # a run that is disabled has none
        run._unregister_telemetry_import_hooks(run.id)
