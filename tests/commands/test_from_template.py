"""What users of lightning-hydra-template have: experiments, tags, .env, debug presets."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import WandbLogger
from support.command import ROOT

from imgcls.config.conf_files import files
from imgcls.loggers.wandb import wandb_logger

Here = Callable[..., None]
Said = Callable[..., str]
PAGE = (ROOT / "docs" / "from_lightning_hydra_template.md").read_text()


def config_of(run: str) -> dict[str, object]:
    config: dict[str, object] = yaml.safe_load(Path(run, "config.yaml").read_text())
    return config


def test_the_experiment_of_the_page(here: Here) -> None:
    block = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    lines = [re.split(r" {2,}# (?!@package _)", line)[0] for line in block[1].splitlines()]
    lines[0] = "# @package _global_"
    file = Path("conf/experiment/mine.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines))
    here("train", "--config-dir=conf", "experiment=mine", "debug=fast", "hydra.run.dir=run", "test=false")
    config = config_of("run")
    assert config["tags"] == ["digits", "simple_cnn"] and config["seed"] == 12345
    assert (config["optimizer"], config["backbone"]["width"]) == (config["optimizer"] | {"lr": 0.002}, 16)  # type: ignore[operator,index]


def test_each_word_of_the_page_is_answered() -> None:
    """Every choice that the page names is there."""
    for group, choice in re.findall(
        r"`(debug|trainer|scheduler|optimizer|sweep|experiment)=(\w+)`", PAGE.split("|---|")[1]
    ):
        there = choice in files(group) or f"{group}={choice}" in (
            "trainer=ddp_sim",
            "debug=default",
            "experiment=mine",
        )
        assert there, (group, choice)


def test_the_example_is_a_run(here: Here) -> None:
    here("train", "experiment=example", "debug=limit", "trainer.max_epochs=1", "test=false", "tags=[a,3]")
    (run,) = Path("runs/debug").iterdir()
    config = config_of(str(run))
    assert config["tags"] == ["a", 3] and config["seed"] == 12345
    assert list(config["callbacks"]) == ["ema"]  # type: ignore[call-overload]


def test_tags_go_to_wandb() -> None:
    logger = wandb_logger(".", mode="offline", tags=["digits", "cnn", ["mine", 3]])
    assert isinstance(logger, WandbLogger)
    assert set(logger.experiment.tags) == {"digits", "cnn", "mine", "3"}
    logger.experiment.finish()


def test_a_run_goes_on_from_its_last_checkpoint(here: Here, said: Said) -> None:
    here("train", "debug=fast", "hydra.run.dir=a run", "test=false")
    here("train", "resume=a run/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert len(Path("a run/metrics.csv").read_text().splitlines()) == 3
    message = said("train", "resume=a run/checkpoints/best.ckpt")
    assert "a run goes on from its last.ckpt" in message and "backbone.weights=" in message
    assert "a run goes on from its last.ckpt" in said("train", "resume=nowhere/last.ckpt")


def test_variables_of_a_file(
    here: Here, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("MINE=from file\nOTHER='as it was'\nWANDB_MODE=disabled\n")
    monkeypatch.setenv("OTHER", "set before")
    for name in ("MINE", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    here("train", "debug=fast", "test=false", "tags=['${oc.env:MINE}']", "hydra.run.dir=run")
    assert config_of("run")["tags"] == ["from file"] and os.environ["OTHER"] == "set before"
    assert "environment: .env sets MINE, WANDB_MODE\n" in capsys.readouterr().out
