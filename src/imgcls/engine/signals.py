"""Signals that ask a training to stop so that it can go on later."""

import signal
from contextlib import suppress
from types import FrameType
from typing import Any

from imgcls.processes import rank

STOPPED = 75  # the exit status of what was stopped from outside and can be resumed (sysexits.h: EX_TEMPFAIL)
# SLURM sends one of these, by choice, some time before it ends a job
WARNINGS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class Stopped(SystemExit):
    """Ends the process with the status that says: resume me."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class Signals:
    """Receives SIGTERM, SIGINT and SLURM's warnings. Within an epoch a stop waits for the end of the step. A
    second SIGINT, and a signal outside of training, ends the process at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.training = False
        self.before: dict[int, Any] = {}

    def __reduce__(self) -> str:
        return "SIGNALS"  # launchers pickle it with the task: by name, as each process has its own

    def install(self, *numbers: int) -> None:
        """Takes these signals over, or all; none outside of the main thread, as Python has it."""
        for number in numbers or (signal.SIGTERM, signal.SIGINT, *WARNINGS):
            try:
                previous = signal.signal(number, self._receive)
            except ValueError:
                return
            if previous != self._receive:
                self.before.setdefault(number, previous)

    def restore(self) -> None:
        """Gives the signals back."""
        for number, previous in self.before.items():
            signal.signal(number, previous or signal.SIG_DFL)
        self.asked, self.training, self.before = None, False, {}

    def stop(self) -> None:
        """Ends the process. A warning first goes to the handler before ours: submitit's requeues the job."""
        previous = self.before.get(self.asked or 0)
        if self.asked in WARNINGS and callable(previous):
            with suppress(SystemExit):
                previous(self.asked, None)
        if rank():
            raise SystemExit(0)  # what starts ranks takes any other status for a crash
        raise Stopped

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked is not None, number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.training and number not in WARNINGS:
            raise Stopped


SIGNALS = Signals()  # one for the process, as signals are
