"""Command lines: what is wrong in one, or in files of conf/, and what `resume=` and `-m` mean to Hydra."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from imgcls.config.conf_files import choices, conf_folders, files, root_keys
from imgcls.config.multirun import is_multirun
from imgcls.config.paths import hydra_quoted
from imgcls.config.words import CHOICES, our_word, renamed
from imgcls.errors import UserError, nearest

NONE = {"callbacks": "[]", "logger": "[]", "scheduler": "constant", "augment": "none", "finetune": "none"}
PARTS = ("callbacks", "logger")  # groups of which several files are chosen, each for the parts that it names
SHOWING = {"-c", "--cfg", "-i", "--info", "-h", "--help", "hydra.mode"}  # with these nothing is trained
SWEEPS = ("sweep=", "sweep.", "hydra/sweeper=", "hydra.sweeper.")
KEYS_LIKE_GROUPS = {("compare", "debug"): "debug_runs"}  # of a root; Hydra would take them for choices
# Keys within a group. Hydra may compose another choice than the run's own, and would not know them
OF_A_CHOICE = re.compile(r"(?!hydra\.)\w+\.[\w.]+=")


def check_groups(root: str, arguments: list[str]) -> list[str]:
    """Returns a command line without `group=null` where the root config has null, too: Hydra refuses it.
    Raises UserError: another `group=null`, or `group=true`: Hydra takes them for faults of its own."""
    kept: list[str] = []
    for argument in arguments:
        group, _, choice = argument.lstrip("+").partition("=")
        if (root, group) in KEYS_LIKE_GROUPS:
            kept.append(f"{KEYS_LIKE_GROUPS[root, group]}={choice}")
            continue
        values = chosen(argument) if group and choices(group) else []
        if values == [None] and root_keys(root, conf_folders()).get(group, "") is None:
            kept = [word for word in kept if not word.startswith(f"{group}=")]  # the last one counts
            continue
        if None in values:
            otherwise = f"leave it out, or {nearest('', choices(group))}"
            instead = f"write {group}={NONE[group]}" if group in NONE else otherwise
            raise UserError(f"{group}={choice}: null is no choice; {instead}")
        if any(isinstance(value, bool | int | float) for value in values):
            advice = nearest("", choices(group), most=40)
            raise UserError(f"{group}={choice}: there is no such choice; {advice}")
        if group == "finetune" and len(values) > 1 and choice.startswith("["):  # Hydra would merge their keys
            raise UserError(f"{group}={choice}: these can't go together; choose {' or '.join(values)}")
        kept.append(argument)
    return kept


def chosen(argument: str) -> list[Any]:
    """Returns the values of `group=a`, `group=[a,b]` or `group=a,b` as Hydra reads them; none if it can't."""
    try:
        value = OverridesParser.create().parse_override(argument).value()
    except HydraException:
        return []
    value = value.list if isinstance(value, ChoiceSweep) else value
    return value if isinstance(value, list) else [value]


def check_keys(config: DictConfig) -> None:
    """Raises UserError for a top-level key of a composed config that is misspelt or another verb's. The keys
    and groups of the verb's root config, all groups that were chosen, and keys that an interpolation names
    are known. Files may also hold the keys of other verbs, because conf/local is for all of them."""
    hydra = config.hydra
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    known = {"hydra", *(group.partition("/")[0] for group in hydra.runtime.choices)}
    known |= {*root_keys(hydra.job.config_name, folders)}
    named = [re.split("[.=@/]", override.lstrip("+~"))[0] for override in hydra.overrides.task]
    roots = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    for key in [*named, *map(str, config)]:
        if key in known or (key not in named and any(key in root_keys(name, folders) for name in roots)):
            continue  # the other roots are read only for a key that this one lacks
        if re.search(rf"\${{[^{{}}]*\b{re.escape(key)}\b", OmegaConf.to_yaml(config)):
            continue
        place = "" if key in named else " (a file of the config sets it)"
        name, value = given(key, hydra.overrides.task)
        advice = our_word(hydra.job.config_name, name, value) or nearest(key, known)
        raise UserError(f"{key}: there is no such key{place}; {advice}")


def take_unchosen(config: Mapping[str, Any], overrides: Iterable[str]) -> list[str]:
    """Removes callbacks and loggers from a plain config that were not chosen (no `_target_`), and returns a
    line for each. Raises UserError: the command line gives them settings."""
    resumed = [override for override in overrides if override.lstrip("+").startswith("resume=")]
    if resumed and resumed[-1].lstrip("+") not in ("resume=auto", "resume=null"):
        return []  # the settings go into the run's own config, which has the parts that it chose
    lines = []
    for group in PARTS:
        parts = config.get(group) or {}
        bare = [name for name, node in parts.items() if isinstance(node, dict) and "_target_" not in node]
        for name in bare:
            place, keys = f"{group}.{name}", list(parts.pop(name))
            present = [part for part in parts if parts[part]]
            moved = renamed(".".join([place, *keys[:1]]))
            advice = moved or choosing(group, name, present) or nearest(name, present)
            if any(override.lstrip("+").startswith((f"{place}.", f"{place}=")) for override in overrides):
                raise UserError(f"{place}: it is not chosen; {advice}")
            lines.append(f"{place}: its settings are not used, because it is not chosen; {advice}")
    return lines


def choosing(group: str, name: str, present: Iterable[str]) -> str:
    """Returns how to choose a callback or logger beside those that are present; "" if it is none of ours."""
    header = f"@package {group}.{name}\n"  # of a group that gives one: finetune
    if any(header in path.read_text() for path in files(name).values()):
        return f"write {name}=…; {nearest('', set(choices(name)) - {NONE.get(name)})}"
    parts = {stem: yaml.safe_load(path.read_text()) or {} for stem, path in sorted(files(group).items())}
    of_it = [stem for stem, keys in parts.items() if name in keys]
    if not of_it:
        return ""
    chosen = [stem for stem, keys in parts.items() if {*keys} & {*present}]
    return f"write {group}=[{','.join([*chosen, of_it[0]])}]"


def explain(error: Exception, verb: str = "train", arguments: Sequence[str] = ()) -> str:
    """Returns one line for a command line that Hydra can't compose, with the nearest right word."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {' '.join(error.message.split())}"
    if ambiguous := re.match("Ambiguous value for argument '(.+?)'", str(error)):
        group, _, listed = ambiguous[1].partition("=")
        if group in (*PARTS, "metrics"):
            return f"{ambiguous[1]}: several are a list; write {group}=[{listed}]"
        command = shlex.join(["imgcls", verb, "-m", *arguments])
        return f"{ambiguous[1]}: several values are a sweep; write {command}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = error.options or choices(group)
        advice = CHOICES.get(f"{group}={choice}") or nearest(choice, options, most=40)
        given_as = f"{group}={choice}" if group else f"--config-name={choice}"
        return f"{given_as}: there is no such choice; {advice}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | AttributeError) and isinstance(cause, OmegaConfBaseException):
        if (asked := re.search(r"'([\w.]+)'", str(error))) and (advice := renamed(asked[1])):
            return f"{asked[1]}: there is no such key; {advice}"
        known = [str(key) for key in cause.parent_node or ()]
        group, _, name = str(cause.full_key).partition(".")
        if group in PARTS and (advice := choosing(group, name, known)):
            return f"{cause.full_key}: it is not chosen; {advice}"
        advice = nearest(str(cause.key), known) if known else "a + in front of it adds it"
        key, value = given(str(cause.full_key), arguments)
        return f"{key}: there is no such key; {our_word(verb, key, value) or advice}"
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return " ".join(str(error).split())


def given(key: str, arguments: Iterable[str]) -> tuple[str, str]:
    """Returns the argument that sets a key, or one below it, as key and value."""
    pairs = [argument.lstrip("+").partition("=") for argument in arguments]
    found = [(name, value) for name, _, value in pairs if name == key or name.startswith(f"{key}.")]
    return found[0] if found else (key, "…")


def hydra_arguments(words: list[str]) -> list[str]:
    """Completes a command line of `imgcls train`. With `resume=RUN_DIR` Hydra then works in that directory,
    leaves its record alone, and takes keys of the run's own choices. With `-m` and keys of `sweep` it runs
    `sweep=grid`. Raises UserError: `-m` is wrong or missing; or each rank would make a directory."""
    values = dict(word.lstrip("+").partition("=")[::2] for word in words if "=" in word)
    multirun = is_multirun(words)
    sweep = [word for word in words if word.startswith(SWEEPS)]
    resume = values.get("resume", "")
    if resume.startswith(("'", '"')):  # Hydra's quotes
        resume = resume[1:-1].replace("\\'", "'")
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("WORLD_SIZE") or 1)
    if started > 1 and not {"hydra.run.dir", "resume"} & values.keys():
        advice = "give all of them one folder, hydra.run.dir=…"
        raise UserError(f"{started} processes were started for one run: {advice}")
    wanted = [word for word in sweep if word != "sweep=null"]
    shows = any(word.partition("=")[0] in SHOWING for word in words)
    if wanted and not multirun and not shows:  # Hydra would train once and say nothing
        command = shlex.join(["imgcls", "train", "-m", *words[1:]])
        raise UserError(f"{wanted[0]}: a sweep needs -m; write {command}")
    launched = [word for word in words if word.startswith(("launcher=", "launcher."))]
    if launched and launched != ["launcher=null"] and not multirun and not shows:
        command = shlex.join(["imgcls", "train", "-m", *words[1:]])
        raise UserError(f"{launched[0]}: a launcher starts the jobs of -m; write {command}")
    if resume not in ("", "null", "auto"):
        if multirun:
            raise UserError(f"resume={resume} goes on with one run; for the runs of a sweep give resume=auto")
        folder = str(run_of(resume).absolute())
        if resume.endswith(".ckpt"):
            words = [word for word in words if not word.lstrip("+").startswith("resume=")]
            words.append(f"resume={hydra_quoted(folder)}")
        words = [f"++{word}" if OF_A_CHOICE.match(word) else word for word in words]
        return [*words, f"hydra.run.dir={hydra_quoted(folder)}", "hydra.output_subdir=null"]
    if multirun and any(word.startswith("sweep.") for word in sweep) and "sweep" not in values:
        return [*words, "sweep=grid"]
    return words


def run_of(resume: str) -> Path:
    """Returns the run directory that `resume` names, or whose last.ckpt it names. Raises UserError: it is
    another checkpoint."""
    path = Path(resume).expanduser()
    if path.suffix != ".ckpt" or path.is_dir():
        return path
    run = path.parent.parent
    if path.name != "last.ckpt" or not (run / "config.yaml").is_file():
        weights = f"backbone.weights={path} begins a new run with its weights"
        raise UserError(f"resume={resume}: a run goes on from its last.ckpt: write resume=RUN_DIR; {weights}")
    return run


def check_place(wanted: str | None, run_dir: Path) -> None:
    """Raises UserError where `resume` names no run, or not the one that Hydra works in: a file has set it."""
    if wanted in (None, "auto"):
        return
    folder = Path(str(wanted)).expanduser()
    if not (folder / "config.yaml").is_file():
        advice = "expected a run directory, or auto"
        raise UserError(f"resume={wanted}: there is no run in it (no config.yaml); {advice}")
    if folder.resolve() != run_dir.resolve():
        advice = "give it on the command line of imgcls train"
        raise UserError(f"resume={wanted}: a file can only set auto; {advice}")
