"""TrackioLogger: logs to trackio, whose dashboard needs no account: `trackio show --project imgcls`."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imgcls.errors import UserError
from imgcls.loggers.rows import once

log = logging.getLogger(__name__)


class TrackioLogger(Logger):
    """Logs metrics and the config to a project of trackio, on this machine or on a server.

    Args:
        save_dir: the run directory. Its last two parts are the run's name, by which it goes on.
        options: to `trackio.init`, such as `space_id` or `server_url`.
    """

    def __init__(self, save_dir: str, project: str, **options: Any) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            install = "pip install -e '.[loggers]'"
            raise UserError(f"logger=trackio: the package is not installed; in the clone: {install}")
        import trackio.run

        # It prints several lines at each beginning and end. `redirect_stdout` is for a whole process: in the
        # thread that waits for a server it would swallow what the training prints.
        for module in (trackio, trackio.run, trackio.utils):
            module.print = lambda *words, **how: None  # type: ignore[attr-defined]
        self.trackio = trackio
        self.project, self.options = project, options
        self.folder = Path(save_dir)
        self.run: Any = None

    @property
    def name(self) -> str:
        return "/".join(self.folder.absolute().parts[-2:])

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Begins the run, or goes on with it."""
        self.config = params
        self.begin()
        if not (self.options.get("space_id") or self.options.get("server_url")):
            log.info("trackio: to see its dashboard: trackio show --project %s", self.project)

    def begin(self) -> None:
        self.run = self.trackio.init(
            self.project, self.name, config=self.config, resume="allow", embed=False, **self.options
        )
        self.log_new = once(self.run.log, self.folder / "trackio.txt")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.run is None:  # Lightning finalizes after each of training, calibration and test
            self.begin()
        self.log_new(dict(metrics), step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None
