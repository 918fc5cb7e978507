"""Configs of conf/, composed in this process."""

from typing import Any

from hydra import compose, initialize_config_dir

from imgcls.config import check as configs
from imgcls.config.training import TrainConfig
from support.command import ROOT

CONF = ROOT / "conf"


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str, root: str = "train") -> dict[str, Any]:
    places = (
        ["run_dir=run", "cwd=.", "names={run: test, data: digits, backbone: simple_cnn}"]
        if root == "train"
        else []
    )
    with initialize_config_dir(str(CONF)):
        return configs.plain(compose(root, [*places, *overrides]))


def training(*overrides: str) -> TrainConfig:
    """Returns the typed config of a training."""
    return TrainConfig.read(composed(*overrides))
