"""UserError: the exception for a user's mistake, and the words that help to mend it."""

import difflib
import itertools
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for. Its message is one line: what was given, what was expected, what to
    do. The command prints that line alone and exits with status 1."""


class UnreadableImage(UserError):
    """The error of a file that is no whole image; its message names the file and the reason."""

    def reason(self) -> str:
        return str(self).partition(" can't be read as an image (")[2].removesuffix(")") or str(self)


class CodeFailed(UserError):
    """An exception of code that the config names; its traceback is in run.log."""


class InUse(UserError):
    """Another process trains in the run directory."""


class TrialPruned(Exception):
    """A search has ended this training, one of its trials, early."""


def nearest(word: str, choices: Iterable[str], most: int = 8) -> str:
    """Returns "did you mean …" where one of `choices` is near to `word`, else the first of them."""
    choices = sorted(choices)
    if close := difflib.get_close_matches(str(word), choices, n=8, cutoff=0.6):

        def likeness(choice: str) -> tuple[float, int]:
            ratio = difflib.SequenceMatcher(None, choice, str(word)).ratio()
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(choice, str(word), strict=False))
            return ratio, len(list(same))  # resnet21: resnet20, not resnet32

        return f"did you mean {max(close, key=likeness)!r}?"
    shown = ", ".join(choices[:most]) + (f", … ({len(choices)} in all)" if len(choices) > most else "")
    return f"choose one of: {shown}" if choices else "there is nothing to choose from"


def one_line(error: UserError) -> str:
    """Returns the message; of one that a loader's worker raised, what follows the worker's traceback."""
    text = str(error).strip()
    if "UnreadableImage: " in text:
        return text.splitlines()[-1].rpartition("UnreadableImage: ")[2]
    return " ".join(text.split())
