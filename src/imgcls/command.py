"""What all verbs share: Hydra composes the config, and a user's mistake ends in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from imgcls import config
from imgcls.errors import UserError, one_line
from imgcls.run import quote_arguments

_packaged = Path(__file__).parent / "conf"  # in a wheel; a checkout has it at its top
CONF = _packaged if _packaged.is_dir() else Path(__file__).parents[2] / "conf"


def verb(name: str, *quoted: str) -> Callable[[Callable[[dict[str, Any], Path], Any]], Callable[[], None]]:
    """Turns `run(config, run_dir)` into the verb's entry point. `config` is plain dicts, all resolved.

    The values of the keys in `quoted`, such as paths, need no quotes of Hydra's grammar on the command line.
    """

    def decorate(run: Callable[[dict[str, Any], Path], Any]) -> Callable[[], None]:
        def task(cfg: DictConfig) -> Any:
            try:
                return run(config.plain(cfg), Path(HydraConfig.get().runtime.output_dir))
            except UserError as error:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise  # the sweeper decides what a failed job means
                sys.exit(f"imgcls {name}: {one_line(error)}")

        entry = hydra.main(config_path=str(CONF), config_name=name)(task)

        def main() -> None:
            quote_arguments(*quoted)
            entry()

        return main

    return decorate
