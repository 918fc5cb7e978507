"""Sweep space: which keys a sweep varies, from its preset and from the command line."""

from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from imgcls.config.multirun import named
from imgcls.errors import UserError
from imgcls.sweeps.settings import SweepSettings


def read_overrides(
    loader: ConfigLoader, config: DictConfig, settings: SweepSettings
) -> tuple[list[str], list[Override]]:
    """Returns the overrides that choose files for all jobs, and those of the jobs: those of the preset
    and of the command line, which counts for a key of both. A key that is null is left out. A search uses
    nothing of its preset if the command line names a space, but for `sweep.params.KEY` there, and leaves out
    keys that the config doesn't have. Raises UserError: several values for a key of the sweep's own."""
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(list(config.hydra.overrides.task))
    own = [o for o in given if o.key_or_group.partition(".")[0] in ("sweep", "launcher")]
    given = [o for o in given if o not in own]
    for override in own:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: one value holds for the whole sweep; give one")
    params = {key: value for key, value in settings.params.items() if value not in (None, "null")}
    if settings.sampler is not None:
        inherited = params.keys() - set(named(config.hydra.overrides.task))
        if any(o.is_sweep_override() for o in given):
            params = {key: params[key] for key in params if key not in inherited}
        nothing = object()  # a key that is there may be null
        has = {key for key in params if OmegaConf.select(config, key, default=nothing) is not nothing}
        for key in [key for key in params if key in inherited and key not in has]:
            del params[key]
            print(f"sweep.params.{key} is left out of the search: this config has no such key", flush=True)
    preset = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    where = [o.input_line or "" for o in own if o.key_or_group == "launcher" or is_for_all(loader, o)]
    return where, list({o.key_or_group: o for o in [*preset, *given]}.values())


def is_for_all(loader: ConfigLoader, override: Override) -> bool:
    """Tells whether an override chooses a preset whose file sets keys beside those of the sweep."""
    name = f"sweep/{override.value()}"
    if override.key_or_group != "sweep":
        return False
    found = (source.load_config(name) for source in loader.get_sources() if source.is_config(name))
    return next((one.header["package"] == "_global_" for one in found), False)


def value_text(override: Override) -> str:
    """Returns the value as it was written."""
    return (override.input_line or "").partition("=")[2]


def choices(override: Override) -> list[str]:
    """Returns the values of a list, the two ends of an interval, or the one value that was given. Raises
    UserError: the list is empty."""
    if not override.is_sweep_override():
        return [value_text(override)]
    if not override.is_discrete_sweep():
        interval: Any = override.value()
        return [str(interval.start), str(interval.end)]
    if not (values := list(override.sweep_string_iterator())):
        raise UserError(f"{override.input_line}: there is no value in it; expected one or more")
    return values
