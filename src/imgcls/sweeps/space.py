"""What a sweep varies: the parameters of its preset, and what the command line says of them."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from imgcls.errors import UserError

PARAMS = "sweep.params."


def folder_name(name: str) -> str:
    """Checks, for pydantic, that a folder beside the other sweeps can have this name."""
    if "/" in name or name[:1] in ("", ".") or len(name.encode()) > 200:
        raise PydanticCustomError(
            "name", "expected a folder's name: no / in it, no dot in front, 200 bytes at most"
        )
    return name


@dataclass(frozen=True)
class Settings:
    """The types of conf/sweep; without any, a grid of what the command line lists."""

    name: Annotated[str, AfterValidator(folder_name)] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    n_jobs: int | None = None
    sampler: dict[str, Any] | None = None
    pruner: dict[str, Any] | None = None
    n_trials: int | None = None


def overrides(
    loader: ConfigLoader, config: DictConfig, settings: Settings
) -> tuple[list[str], list[Override]]:
    """Returns the override that says where jobs run, and those of the jobs: the preset's, and the command line's,
    which win.

    A list or an interval for `sweep.params.KEY` takes the place of the preset's. A search takes nothing of its preset
    where the command line names a space, and leaves out keys that the config doesn't have.

    Raises:
        UserError: several values for another key of the sweep's own.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(list(config.hydra.overrides.task))
    own = [o for o in given if o.key_or_group.partition(".")[0] in ("sweep", "launcher")]
    given = [o for o in given if o not in own]
    params, named = dict(settings.params), {}
    for override in own:
        if override.is_sweep_override():
            if not override.key_or_group.startswith(PARAMS):
                raise UserError(f"{override.input_line}: one value holds for the whole sweep; give one")
            named[override.key_or_group.removeprefix(PARAMS)] = (override.input_line or "").partition("=")[2]
    if settings.sampler is not None:
        if any(o.is_sweep_override() for o in given):
            params = {}  # its space is for those who name none
        for key in [key for key in params if key not in named and not has(config, key)]:
            del params[key]
            print(f"sweep.params.{key} is left out of the search: this config has no such key", flush=True)
    preset = parser.parse_overrides([f"{key}={value}" for key, value in {**params, **named}.items()])
    where = [o.input_line or "" for o in own if o.key_or_group == "launcher"]
    return where, list({o.key_or_group: o for o in [*preset, *given]}.values())


def has(config: DictConfig, key: str) -> bool:
    """Whether there is such a key in a config, be it null."""
    nothing = object()
    return OmegaConf.select(config, key, default=nothing) is not nothing


def choices(override: Override) -> list[str]:
    """Returns the values of a list; of an interval its ends.

    Raises:
        UserError: there are none.
    """
    if not override.is_discrete_sweep():
        interval: Any = override.value()
        return [str(interval.start), str(interval.end)]
    if not (values := list(override.sweep_string_iterator())):
        raise UserError(f"{override.input_line}: there is no value in it; expected one or more")
    return values
