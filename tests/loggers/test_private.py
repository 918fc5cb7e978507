"""The private names of W&B that imgcls.loggers.private touches."""

import inspect
import sys
from unittest.mock import Mock

import pytest
import wandb

from imgcls.loggers.private import leave_out_job_inputs, remove_import_hooks


def test_a_run_looks_for_job_inputs_by_this_method(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "self._detect_and_apply_job_inputs()" in inspect.getsource(wandb.Run)
    monkeypatch.setattr(wandb.Run, "_detect_and_apply_job_inputs", None)  # put back at the end
    monkeypatch.delitem(sys.modules, "wandb.sdk.launch", raising=False)
    leave_out_job_inputs()
    wandb.Run._detect_and_apply_job_inputs(Mock())


def test_import_hooks_of_a_run_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(wandb.Run, "_unregister_telemetry_import_hooks", staticmethod(removed.append))
    run = wandb.init(mode="offline")
    try:
        remove_import_hooks(run)
        assert removed == [run.id]
    finally:
        run.finish()
