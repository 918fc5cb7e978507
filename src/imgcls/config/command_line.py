"""Command lines: what is wrong in one, or in files of conf/, and what `resume=` and `-m` mean to Hydra."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from imgcls.config.paths import CONF, hydra_quoted
from imgcls.config.project import own_project
from imgcls.errors import UserError, nearest

NONE = {"callbacks": "[]", "logger": "[]", "scheduler": "constant", "augment": "none", "finetune": "none"}
PARTS = ("callbacks", "logger")  # groups of which several files are chosen, each for the parts that it names
SHOWING = {"-c", "--cfg", "-i", "--info", "-h", "--help", "hydra.mode"}  # with these nothing is trained
# Where keys were that conf/recovery or augment.image has now; trainer.on_oom is gone
MOVED = re.compile(
    r"(callbacks\.(checkpoint|safeguard|progress)|trainer\.on_(nonfinite|oom)|augment\.policy)(?![^.])"
)
# Keys of Lightning's Trainer that other parts of the config say.
ELSEWHERE = {
    "trainer.callbacks": "write callbacks=…, or +callbacks.NAME._target_=…",
    "trainer.logger": "write logger=…, or +logger.NAME._target_=…",
    "trainer.default_root_dir": "write hydra.run.dir=…",
    "data.streaming": "the library's stream can't be resumed exactly: write imgcls pack data=huggingface "
    "format=litdata …, and train with data=streaming",
    "trainer.enable_checkpointing": "checkpoints are always kept, as recovery says",
}
# Keys within a group. Hydra may compose another choice than the run's own, and would not know them
OF_A_CHOICE = re.compile(r"(?!hydra\.)\w+\.[\w.]+=")


def conf_folders() -> list[Path]:
    """Returns the folders of config files, in the order in which Hydra looks in them: a file of the project
    comes before ours of the same name, because one that is not read would be a riddle."""
    project = own_project()
    return [project.conf, CONF] if project and project.conf else [CONF]


def files(group: str) -> dict[str, Path]:
    """Returns the files of a group by choice."""
    found = (path for folder in reversed(conf_folders()) for path in (folder / group).glob("*.yaml"))
    return {path.stem: path for path in found}


def choices(group: str) -> list[str]:
    return sorted(files(group))


def check_groups(root: str, arguments: list[str]) -> list[str]:
    """Returns a command line without `group=null` where the root config has null, too: Hydra refuses it.
    Raises UserError: another `group=null`, or `group=true`: Hydra takes them for faults of its own."""
    kept: list[str] = []
    for argument in arguments:
        group, _, choice = argument.lstrip("+").partition("=")
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
    given = [re.split("[.=@/]", override.lstrip("+~"))[0] for override in hydra.overrides.task]
    roots = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    for key in [*given, *map(str, config)]:
        if key in known or (key not in given and any(key in root_keys(name, folders) for name in roots)):
            continue  # the other roots are read only for a key that this one lacks
        if re.search(rf"\${{[^{{}}]*\b{re.escape(key)}\b", OmegaConf.to_yaml(config)):
            continue
        place = "" if key in given else " (a file of the config sets it)"
        raise UserError(f"{key}: there is no such key{place}; {nearest(key, known)}")


def root_keys(name: str, folders: list[Path]) -> dict[str, Any]:
    """Returns the top-level keys of a root config and of those in its defaults, with their values, and the
    groups with their choices. A file that is no config has none."""
    path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    try:
        root = yaml.safe_load(path.read_text()) if path else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # type: ignore[attr-defined]
        root = None
    keys = {str(key): value for key, value in root.items()} if isinstance(root, dict) else {}
    entries = keys.pop("defaults", None)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, str) and entry not in ("_self_", name):
            keys |= root_keys(entry.strip("/"), folders)
        elif isinstance(entry, dict):  # {"optional local": default}, {"data@validation": digits}
            groups = {str(group).split()[-1].rpartition("@")[2].lstrip("/"): entry[group] for group in entry}
            keys |= {re.split("[./]", group)[0]: choice for group, choice in groups.items()}
    return keys


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


def renamed(key: str) -> str:
    """Returns what to write in place of a key that was moved or has no effect; "" for any other."""
    if not MOVED.match(key):
        return ELSEWHERE.get(key, "")
    name, known = key.rpartition(".")[2], root_keys("recovery/default", conf_folders())
    if key.startswith("augment."):
        return f"write {key.replace('.policy', '.image.policy', 1)}=…"
    if name == "on_oom":
        return "find a size that fits with tune=batch_size"
    return f"write recovery.{name}=…" if name in known else f"write recovery.…; {nearest(name, known)}"


def explain(error: Exception) -> str:
    """Returns one line for a command line that Hydra can't compose, with the nearest right word."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {' '.join(error.message.split())}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if (group, choice) == ("callbacks", "default"):
            instead = "what it had is always there, with its settings in recovery; leave it out, as in"
            return f"callbacks=default: {instead} callbacks=ema or callbacks=[ema,early_stopping]"
        options = error.options or choices(group)
        return f"{group}={choice}: there is no such choice; {nearest(choice, options, most=40)}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | AttributeError) and isinstance(cause, OmegaConfBaseException):
        if (asked := re.search(r"'([\w.]+)'", str(error))) and (advice := renamed(asked[1])):
            return f"{asked[1]}: there is no such key; {advice}"
        known = [str(key) for key in cause.parent_node or ()]
        group, _, name = str(cause.full_key).partition(".")
        if group in PARTS and (advice := choosing(group, name, known)):
            return f"{cause.full_key}: it is not chosen; {advice}"
        advice = nearest(str(cause.key), known) if known else "a + in front of it adds it"
        return f"{cause.full_key}: there is no such key; {advice}"
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return " ".join(str(error).split())


def hydra_arguments(words: list[str]) -> list[str]:
    """Completes a command line of `imgcls train`. With `resume=RUN_DIR` Hydra then works in that directory,
    leaves its record alone, and takes keys of the run's own choices. With `-m` and keys of `sweep` it runs
    `sweep=grid`. Raises UserError: `-m` is wrong or missing; or each rank would make a directory."""
    values = dict(word.lstrip("+").partition("=")[::2] for word in words if "=" in word)
    multirun = not {"-m", "--multirun"}.isdisjoint(words)
    sweep = [word for word in words if word.startswith(("sweep=", "sweep."))]
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
        folder = str(Path(resume).expanduser().absolute())
        words = [f"++{word}" if OF_A_CHOICE.match(word) else word for word in words]
        return [*words, f"hydra.run.dir={hydra_quoted(folder)}", "hydra.output_subdir=null"]
    if multirun and sweep and not any(word.startswith("sweep=") for word in sweep):
        return [*words, "sweep=grid"]
    return words


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
