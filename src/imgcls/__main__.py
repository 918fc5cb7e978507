"""The command `imgcls VERB key=value …`. It imports nothing heavy: help and completion answer at once."""

import errno
import gc
import importlib
import logging
import os
import re
import select
import sys
from pathlib import Path
from typing import Any, NamedTuple

from imgcls.engine.signals import SIGNALS, WARNINGS
from imgcls.errors import UserError, nearest, one_line

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
FOLDERS = ("commands/*.py", "tools/*.py", "tools/*/command.py")
FIRST_LINE = re.compile(r'"""imgcls (\w+): (.+?)\.(?: |""")')


class Verb(NamedTuple):
    """A verb: the module whose `main` does it, and what the help says of it."""

    module: str
    phrase: str


def find_verbs() -> dict[str, Verb]:
    """Returns the verbs by name, `train` first. A verb is a file whose docstring begins with a line like
    `imgcls train: trains a network.`; without its file it is not there."""
    package, found = Path(__file__).parent, dict[str, Verb]()
    for path in sorted(path for pattern in FOLDERS for path in package.glob(pattern)):
        with path.open(encoding="utf-8") as file:
            if match := FIRST_LINE.match(file.readline()):
                module = ".".join(path.relative_to(package).with_suffix("").parts)
                found[match[1]] = Verb(f"imgcls.{module}", match[2])
    return dict(sorted(found.items(), key=lambda verb: verb[0] != "train"))


VERBS = find_verbs()
LINES = "\n".join(f"  {name:<10}{verb.phrase}" for name, verb in VERBS.items())
USAGE = f"""imgcls VERB key=value …

{LINES}

  imgcls train                                  the default: a small network on scikit-learn's digits
  imgcls train data=cifar10 backbone=resnet20 optimizer.lr=0.1
  imgcls train -m backbone=resnet20,resnet32    one run for each
  imgcls VERB --help                            its choices and keys
  imgcls help optimizer.lr                      what a key or a group is, and what it takes
  eval "$(imgcls train -sc install=bash)"       tab completion (also zsh, fish)"""


def main() -> None:
    """Runs the verb named on the command line. Exit status: 0 done, 1 a user's mistake or a failure."""
    try:
        try:
            _main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread(sys.stdout.fileno()):
            raise  # of another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        sys.exit(141)  # as the shell says of a program that SIGPIPE has ended


def _unread(pipe: int) -> bool:
    """Returns whether what reads from this pipe, such as `head`, has ended."""
    watch = select.poll()
    watch.register(pipe, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def _main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["-sc"]:
        return _complete(arguments)
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["help"]:
        return print(USAGE)
    if arguments[0] == "--version":
        return print(importlib.import_module("imgcls").__version__)
    verb, *words = arguments
    if verb == "help":
        return _help(words)
    if verb not in VERBS:
        sys.exit(f"imgcls {verb}: there is no such verb; {nearest(verb, VERBS)}")
    if verb == "new":  # a name is all it takes: there is no config
        return _new(words)
    run(verb, words)


def _help(words: list[str]) -> None:
    """Prints what a verb, a group or a key is: one after the other."""
    for word in words:
        if word in VERBS:
            run(word, ["--help"]) if word != "new" else _new(["--help"])
            continue
        from imgcls.commands.verb import enter_project
        from imgcls.config.help import key_help

        try:
            enter_project()
            print(key_help(word.partition("=")[0], list(VERBS)))
        except UserError as error:
            sys.exit(f"imgcls {one_line(error)}")


def _new(words: list[str]) -> None:
    try:
        importlib.import_module(VERBS["new"].module).main(words)
    except UserError as error:
        sys.exit(f"imgcls new: {one_line(error)}")


def run(verb: str, arguments: list[str]) -> list[tuple[Any, Path]]:
    """Runs a verb; returns its results with their run directories. A mistake of the user's ends the process
    with one line and status 1."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as they are; this file says them
    gc.set_threshold(50_000, 20, 100)  # looking for garbage in what is imported takes a tenth of the start
    logging.raiseExceptions = False  # a log file on a full disk: what can't do without room says so
    if verb == "train":
        SIGNALS.install(*WARNINGS)  # which would end the process while all is imported
    from hydra.errors import ConfigCompositionException, OverrideParseException, SearchPathException

    from imgcls.commands.verb import run_verb, show_help
    from imgcls.config import paths
    from imgcls.config.command_line import check_groups, explain, hydra_arguments
    from imgcls.config.multirun import as_multirun, as_text
    from imgcls.config.words import check_words

    try:
        check_words(verb, arguments)
        words = as_multirun(verb, check_groups(verb, arguments))
        sys.argv = [sys.argv[0], *paths.quoted(words)]
        if {"-h", "--help"} & {*arguments}:
            return show_help(verb, sys.argv[1:])
        if verb == "train":
            sys.argv = as_text(hydra_arguments(sys.argv))
        return run_verb(verb, VERBS[verb].module)
    except UserError as error:
        sys.exit(f"imgcls {verb}: {one_line(error)}")
    except (ConfigCompositionException, OverrideParseException, SearchPathException) as error:
        sys.exit(f"imgcls {verb}: {explain(error, verb, arguments)}")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        file = error.filename or "a file"
        sys.exit(f"imgcls {verb}: {file}: {error.strerror}; make room, allow it, or use another folder")


def _complete(arguments: list[str]) -> None:
    """Hydra's shell completion, one word further: the verb is completed here, what follows it by Hydra."""
    program, *words = os.environ.get("COMP_LINE", "imgcls").split(" ")
    if len(words) < 2 or words[0] not in VERBS:
        return print(" ".join(VERBS))
    key, equals, begun = words[-1].partition("=")
    if equals and importlib.import_module("imgcls.config.paths").takes_path(key.lstrip("+")):
        folder, slash, start = begun.rpartition("/")
        found = sorted(Path(folder + slash or ".").expanduser().glob(f"{start}*"))
        names = (f"{key}={folder}{slash}{path.name}{'/' if path.is_dir() else ''}" for path in found)
        return print(*names, sep="\n")
    os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    run(words[0], arguments)


if __name__ == "__main__":
    main()
