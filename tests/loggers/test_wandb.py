"""What the offline runs of a sweep hold, read back from W&B's own files."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command import ROOT
from support.runs import read_back


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # wandb-workspaces' own
def test_runs_of_a_search(here: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finishes, one that is pruned, one that fails."""
    here(
        "train", "-m", "trainer=cpu", "trainer.max_epochs=2", "sweep=optuna", "sweep.name=mine",
        "sweep.pruner={_target_: optuna.pruners.ThresholdPruner,lower: 0.5,n_warmup_steps: 1}",
        "sweep.n_trials=3",
        "sweep.sampler={_target_: optuna.samplers.BruteForceSampler,seed: 1}", "optimizer.lr=0.004,1e-9,-1",
        "logger.wandb.log_model=true",
    )  # fmt: skip
    folders = {path.name.partition("_")[2]: path for path in Path("runs/sweeps/mine").glob("[0-9]_*")}
    runs = {name: read_back(folder) for name, folder in folders.items()}
    ends = {"0.004": ("finished", 0), "1e-09": ("pruned", 0), "-1": ("failed", 1)}
    for name, found in runs.items():
        value = name.partition("=")[2].partition(",")[0]
        word, code = ends.pop(value if value != "1e-9" else "1e-09")
        assert (found["summary"]["status"], found["exit"]) == (word, code), name
        assert found["run"]["display_name"] == name == f"optimizer.lr={value}"
        assert (found["run"]["run_group"], found["run"]["job_type"]) == ("mine", "train")
        assert found["run"]["tags"] == ["digits", "simple_cnn", *(["pruned"] if word == "pruned" else [])]
        number = int(folders[name].name.partition("_")[0])
        plumbing = found["config"]["run"]
        assert plumbing["job"] == {"sweep": "mine", "number": number}  # nested, and resolved
        assert plumbing["run_dir"] == str(folders[name].resolve())
        assert found["config"]["optimizer"]["lr"] == float(value)
        assert len(found["artifacts"]) >= (word == "finished")
    assert not ends
    check_finished(next(found for name, found in runs.items() if "0.004" in name))
    monkeypatch.syspath_prepend(ROOT / "docs")
    check_report(Path("runs/sweeps/mine"))


def check_report(sweep: Path) -> None:
    """What the script would save on W&B's server: the group's runs, and panels that name what W&B has."""
    made = importlib.import_module("wandb_report").report(sweep, "someone")._to_model()
    assert made.project.name == "imgcls" and made.display_name == "Sweep mine"
    (grid,) = (
        block for block in made.spec.model_dump(by_alias=True)["blocks"] if block["type"] == "panel-grid"
    )
    (runs,) = grid["metadata"]["runSets"]
    (group,) = runs["filters"]["filters"]
    assert (group["key"], group["op"], group["value"]) == ({"section": "run", "name": "group"}, "=", "mine")
    assert {"summary:best/val/top1", "config:optimizer.value.lr"} < set(runs["runFeed"]["columnOrder"])
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    shown = [json.dumps(panel["config"]) for panel in panels]
    assert all(
        '"config:optimizer.value.lr"' in text and '"summary:best/val/top1"' in text for text in shown[:1]
    )
    assert '"best/val/top1"' in shown[1]  # what matters for it
    lines = [panel["config"]["metrics"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert ["val/top1"] in lines and ["val/loss"] in lines and len(lines) == 7
    assert sum("Scatter" in panel["viewType"] for panel in panels) == 2
    places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)


@pytest.mark.slow
def test_no_report_without_a_key() -> None:
    command = [sys.executable, str(ROOT / "docs" / "wandb_report.py"), "runs/sweeps/mine"]
    bare = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"} | {
        "HOME": str(Path.cwd())
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=bare)
    assert done.returncode == 1 and done.stderr.startswith(
        "wandb_report: W&B has no key here, and a report is made"
    )
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stdout


def check_finished(found: dict[str, Any]) -> None:
    """The history of all epochs, the best and the last in the summary, the report's media, the checkpoint."""
    tops = [item["val/top1"] for item in found["history"] if "val/top1" in item]
    best = [item["best/val/top1"] for item in found["history"] if "val/top1" in item]
    assert best == [max(tops[: i + 1]) for i in range(len(tops))]
    summary = found["summary"]
    assert len(tops) == 2 and summary["best/val/top1"] == max(tops) and summary["val/top1"] == tops[-1]
    names = {
        key.partition(".")[0] for key in (*summary, *chain(*found["history"]))
    }  # a picture is a table of its facts
    media = {
        "test/mistakes",
        "test/worst_mistakes",
        "test/per_class",
        "test/confusion_picture",
        "test/reliability",
    }
    assert media | {"test/top1", "best/epoch", "train/loss", "lr", "images_per_second"} <= names
    models = [artifact for artifact in found["artifacts"] if artifact["type"] == "model"]
    assert len(models) == 1 and "best" in models[0]["aliases"]
    assert [entry["path"] for entry in models[0]["manifest"]["contents"]] == ["best.ckpt"]


def test_the_agents_search(here: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """What W&B's agent starts for conf/wandb_sweep.yaml, with the least of each parameter."""
    search = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())
    given = {
        key: node.get("min", node.get("values", [None])[0]) for key, node in search["parameters"].items()
    }
    words = {
        "${env}": [],
        "${program}": [search["program"]],
        "${args_no_hyphens}": [f"{k}={v}" for k, v in given.items()],
    }
    command = [word for part in search["command"] for word in words.get(part, [part])]
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert command[0] == "imgcls"
    here(*command[1:], "debug=fast", "test=false")
    (made,) = Path("runs").glob("debug/*/config.yaml")
    config = yaml.safe_load(made.read_text())
    assert config["optimizer"]["lr"] == 1e-4 and config["data"]["batch_size"] == 32
    name = search["metric"]["name"].removeprefix("best/")
    assert config["optimized_metric"] == name in (made.parent / "metrics.csv").read_text()
