"""SaveConfig callback: puts the run's config into each checkpoint."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from imgcls.engine.resume import note_change
from imgcls.runs.record import rerooted, write_config


class SaveConfig(Callback):
    """Puts the run's whole config, plain and resolved, into each checkpoint."""

    def __init__(self, config: dict[str, Any], resumed_from: Path | None = None) -> None:
        self.config, self.resumed_from = config, resumed_from
        self.kept = self.trained = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep(trainer)

    def keep(self, trainer: Trainer) -> None:
        """Writes the config into the run directory, once: a change at a resume that has worked is kept."""
        if trainer.is_global_zero and not self.kept:
            config = {k: v for k, v in self.config.items() if k != "git"}
            note_change(Path(self.config["run_dir"]), config, self.resumed_from)
            write_config(Path(self.config["run_dir"]), config)
        self.kept = True

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        before = checkpoint["config"][
            "run_dir"
        ]  # where the best checkpoint was, if the run has been moved since
        checkpoint["callbacks"] = rerooted(checkpoint["callbacks"], before, self.config["run_dir"])
