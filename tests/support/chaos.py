"""Starts trainings and kills them: `python chaos.py FILE`, where FILE is a JSON list of attempts.

An attempt is {"arguments": […], "event": "step" | "validation" | "writing" | "renaming" | null, "count": n,
"signal": number}, and may have a "folder": where it runs. Each runs in a process of its own, forked after the
imports, in a session of its own; the signal goes to it at the event's n-th time. Prints a JSON list of the
exit statuses.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgcls.__main__ import main
from imgcls.engine import checkpoint
from imgcls.tasks.task import Task


def before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Calls `action` before each call of a function."""
    function = getattr(owner, name)

    def both(*arguments: Any, **keywords: Any) -> Any:
        action()
        return function(*arguments, **keywords)

    setattr(owner, name, both)


def prepare(attempt: dict[str, Any]) -> None:
    """Arranges that this process gets the signal at the event."""
    left = attempt["count"]

    def happens() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), attempt["signal"])

    if attempt["event"] == "step":
        before(Task, "training_step", happens)
    elif attempt["event"] == "validation":
        before(Task, "validation_step", happens)
    elif attempt["event"] == "renaming":  # of the file that was written, or of the one that it replaces
        before(Path, "replace", happens)
    elif attempt["event"] == "writing":
        save = checkpoint.torch.save

        def half(content: Any, file: Any) -> None:
            save(content, file)
            file.truncate(file.tell() // 2)
            happens()
            file.seek(0)
            save(content, file)

        torch = type("Torch", (), {"save": staticmethod(half), "load": checkpoint.torch.load})
        checkpoint.torch = torch  # type: ignore[assignment]


def run(attempt: dict[str, Any]) -> int:
    """Returns the exit status of an attempt, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(attempt.get("folder", "."))
        sys.argv = ["imgcls", "train", *attempt["arguments"]]
        prepare(attempt)
        try:
            main()
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            os._exit(ended.code if isinstance(ended.code, int) else 1 if ended.code else 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(99)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the other ranks
    return status


if __name__ == "__main__":
    print(json.dumps([run(attempt) for attempt in json.loads(Path(sys.argv[1]).read_text())]))
