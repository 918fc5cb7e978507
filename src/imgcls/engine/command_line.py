"""The command line of `imgcls train`: read once, and completed with what `resume=` and `-m` mean to Hydra."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imgcls.config.paths import hydra_quoted
from imgcls.errors import UserError

SHOWING = {"-c", "--cfg", "-i", "--info", "-h", "--help", "hydra.mode"}  # with these nothing is trained
# Keys within a group. Hydra may compose another choice than the run's own, and would not know them
OF_A_CHOICE = re.compile(r"(?!hydra\.)\w+\.[\w.]+=")


@dataclass(frozen=True)
class CommandLine:
    """A command line of `imgcls train`, and what it asks for."""

    words: list[str]  # all of it, the program first
    multirun: bool  # one run for each combination of values, or a search
    shows: bool  # no run: help, or the config
    sweep: list[str]  # the overrides of the group `sweep`
    resume: str | None  # the run directory to go on with
    placed: bool  # it says in which folder to run

    @classmethod
    def read(cls, words: list[str]) -> Self:
        overrides = [word.lstrip("+").partition("=") for word in words if "=" in word]
        values = {key: value for key, _, value in overrides}
        resume = values.get("resume", "")
        if resume.startswith(("'", '"')):  # Hydra's quotes
            resume = resume[1:-1].replace("\\'", "'")
        return cls(
            words=words,
            multirun=not {"-m", "--multirun"}.isdisjoint(words),
            shows=any(word.partition("=")[0] in SHOWING for word in words),
            sweep=[word for word in words if word.startswith(("sweep=", "sweep."))],
            resume=None if resume in ("", "null", "auto") else resume,
            placed="hydra.run.dir" in values or "resume" in values,
        )


def hydra_arguments(words: list[str]) -> list[str]:
    """Completes a command line. With `resume=RUN_DIR` Hydra then works in that directory, leaves its record
    alone, and takes keys of the run's own choices. With `-m` and keys of `sweep` it runs `sweep=grid`.

    Raises:
        UserError: `-m` is missing or too much; or each rank of torchrun or srun would make a directory.
    """
    line = CommandLine.read(words)
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("WORLD_SIZE") or 1)
    if started > 1 and not line.placed:
        raise UserError(
            f"{started} processes were started for one run: give all of them one folder, hydra.run.dir=…"
        )
    if not line.multirun and not line.shows:
        refuse_sweep(line)
    if line.resume is not None:
        if line.multirun:
            raise UserError(
                f"resume={line.resume} goes on with one run; for the runs of a sweep give resume=auto"
            )
        folder = str(Path(line.resume).expanduser().absolute())
        words = [f"++{word}" if OF_A_CHOICE.match(word) else word for word in words]
        return [*words, f"hydra.run.dir={hydra_quoted(folder)}", "hydra.output_subdir=null"]
    if line.multirun and line.sweep and not any(word.startswith("sweep=") for word in line.sweep):
        return [*words, "sweep=grid"]
    return words


def refuse_sweep(line: CommandLine) -> None:
    """Raises UserError for a sweep without -m: Hydra would train once and say nothing."""
    for word in line.sweep:
        if word != "sweep=null":
            command = shlex.join(["imgcls", "train", "-m", *line.words[1:]])
            raise UserError(f"{word}: a sweep needs -m; write {command}")
