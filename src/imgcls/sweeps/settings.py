"""Settings of a sweep: the keys of conf/sweep, and those of Hydra's own sweepers that mean the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from imgcls.config import check as configs
from imgcls.config.multirun import named
from imgcls.errors import UserError, nearest

# Keys of Hydra's sweepers, and the keys of conf/sweep that mean the same
SAME = {
    "params": "params", "n_trials": "n_trials", "n_jobs": "n_jobs", "max_batch_size": "n_jobs",
    "sampler": "sampler", "study_name": "name", "direction": "direction",
}  # fmt: skip
# Keys of Hydra's sweepers that have no effect here: another value than null, or than its own, is refused
WITHOUT = {
    "storage": "the study is a file in the sweep's folder, which several processes can share",
    "max_failure_rate": "a trial that fails is recorded, and stops no other",
    "custom_search_space": "write the space as params; one that depends on another choice is sweep.when",
    "search_space": "write the space as params",
}
OPTUNAS = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"  # in its place works ours
TPE = {"_target_": "optuna.samplers.TPESampler"}
MODES = {"minimize": "min", "maximize": "max"}
Direction = Literal["minimize", "maximize"]
Count = Annotated[int, Field(ge=1)]


def folder_name(name: str) -> str:
    """Checks, for pydantic, that a folder beside the other sweeps can have this name."""
    if "/" in name or name[:1] in ("", ".") or len(name.encode()) > 200:
        expected = "expected a folder's name: no / in it, no dot in front, 200 bytes at most"
        raise PydanticCustomError("name", expected)
    return name


@dataclass(frozen=True)
class SweepSettings:
    """The keys of conf/sweep; the defaults are a grid of the lists on the command line."""

    name: Annotated[str, AfterValidator(folder_name)] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    when: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_jobs: Annotated[int, Field(ge=-1)] | None = None
    sampler: dict[str, Any] | None = None
    pruner: dict[str, Any] | None = None
    n_trials: int | None = None
    direction: Direction | list[Direction] | None = None

    @classmethod
    def read(cls, config: DictConfig) -> "SweepSettings":
        """Returns the settings of a composed config: those of `hydra.sweeper` go before those of `sweep`, and
        what the command line says of the space before both. Raises UserError: a key or value is wrong."""
        own, hydras = plain(config.get("sweep")), plain(config.hydra.sweeper)
        check_hydras(config, hydras)
        given = {key: value for key, value in own.items() if key in cls.__annotations__}
        space = dict(given.get("params") or {}) | (hydras.pop("params", None) or {})
        space |= {key: own["params"][key] for key in named(config.hydra.overrides.task)}
        if hydras["_target_"] == OPTUNAS:
            given["sampler"] = given.get("sampler") or TPE
        given |= {SAME[key]: value for key, value in hydras.items() if key in SAME and value is not None}
        found = configs.typed(given | {"params": space}, cls, "sweep")
        assert isinstance(found, cls)
        return found

    def modes(self, metrics: list[str], mode: Any) -> list[str | None]:
        """Returns for each metric "min" or "max", as `optimized_mode` or `direction` has it, or None. Raises
        UserError: the two differ, or there are not as many as metrics."""
        found: list[list[str | None]] = []
        for key, value in (("optimized_mode", mode), ("hydra.sweeper.direction", self.direction)):
            several = [value] * len(metrics) if value is None or isinstance(value, str) else list(value)
            if len(several) != len(metrics):
                listed = ", ".join(metrics)
                raise UserError(f"{key}={value}: expected one for each of {listed}")
            found.append([MODES.get(str(one), one) for one in several])
        if any(one and other and one != other for one, other in zip(*found, strict=True)):
            what = f"optimized_mode={mode} is the other one; give one of the two"
            raise UserError(f"hydra.sweeper.direction={self.direction}: {what}")
        return [one or other for one, other in zip(*found, strict=True)]


def plain(node: DictConfig | None) -> Any:
    """Returns a part of a config as plain data."""
    return {} if node is None else OmegaConf.to_container(node, resolve=True)


def check_hydras(config: DictConfig, sweeper: Mapping[str, Any]) -> None:
    """Raises UserError for keys of `hydra.sweeper` and `hydra.sweep` that would have no effect."""
    for key, value in sweeper.items():
        if key not in SAME and key not in WITHOUT and key != "_target_":
            raise UserError(f"hydra.sweeper.{key}: there is no such key; {nearest(key, SAME)}")
        if key in WITHOUT and value is not None:
            raise UserError(f"hydra.sweeper.{key}={value}: only null is taken; {WITHOUT[key]}")
    configs.typed(sweeper.get("direction"), Direction | list[Direction] | None, "hydra.sweeper.direction")
    raw = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(raw, dict)
    if raw["subdir"] != "${hydra:job.num}":
        names = "a job's folder is named by its number and what it overrides; leave it out"
        raise UserError(f"hydra.sweep.subdir={raw['subdir']}: {names}")
