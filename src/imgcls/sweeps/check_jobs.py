"""Checks of all jobs of a sweep before the first of them starts: names, types, bounds, and the metrics that
are optimised. Hydra takes 70 ms to compose a job's config, so only jobs with other files are composed; each
other value is put into such a config and checked there."""

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict, read_write

from imgcls.config import check as configs
from imgcls.config.build import build
from imgcls.config.command_line import take_unchosen
from imgcls.config.training import TrainConfig
from imgcls.errors import UserError, nearest
from imgcls.sweeps.conditions import Branch, Space
from imgcls.sweeps.space import choices
from imgcls.tasks.metrics import logs_of

MOST = 64  # combinations of files that are all composed; of more, as many as have each file once
Config = dict[str, Any]  # plain


def check_jobs(
    loader: ConfigLoader, config: DictConfig, shared: list[str], space: Space, branches: list[Branch]
) -> dict[str, str | None]:
    """Checks the config of each job, which has the overrides `shared` and a value for each key of the space.
    Returns what the first that has its data logs: names, and the direction in which each is better. Raises
    UserError: a key, a type or a bound is wrong in a job, or the data of all jobs are."""
    known, mistake = dict[str, str | None](), UserError()
    for job in job_configs(loader, config, shared, space, branches):
        TrainConfig.read(job)
        try:
            known = known or logged_by(job)
        except UserError as error:  # other jobs may be right
            mistake = error
    if not known:
        raise mistake
    return known


def job_configs(
    loader: ConfigLoader, config: DictConfig, shared: list[str], space: Space, branches: list[Branch]
) -> Iterator[Config]:
    """Yields plain configs of jobs in which each value is once, beside each combination of files, and of
    values that are conditions of a branch."""
    values = {key: choices(override) for key, override in space.items()}
    conditions = {branch.key for branch in branches}
    split = [key for key in values if key in conditions or is_file(loader, key)]
    parser = OverridesParser.create()
    for chosen in combinations({key: values[key] for key in split}):
        found = {key: [value] for key, value in chosen.items()} | {
            key: some for key, some in values.items() if key not in split
        }
        for branch in branches:
            if branch.holds({key: some[0] for key, some in found.items()}):
                found |= {key: choices(override) for key, override in branch.space.items()}
        firsts = {key: some[0] for key, some in found.items()}
        first = composed(loader, config, [*shared, *assigned(firsts)])
        yield first
        for key, value in [(key, value) for key, some in found.items() for value in some[1:]]:
            job = None if "${" in value else with_value(first, parser.parse_override(f"{key}={value}"))
            yield job or composed(loader, config, [*shared, *assigned(firsts | {key: value})])


def is_file(loader: ConfigLoader, key: str) -> bool:
    """Tells whether a key chooses a file of conf/."""
    return "@" in key or bool(loader.get_group_options(key.lstrip("+")))


def assigned(values: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def combinations(values: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """Yields all combinations of values, or, where these are many, some that have each value once."""
    if math.prod(map(len, values.values())) <= MOST:
        yield from (dict(zip(values, some, strict=True)) for some in itertools.product(*values.values()))
        return
    for i in range(max(map(len, values.values()))):
        yield {key: some[i % len(some)] for key, some in values.items()}


def composed(loader: ConfigLoader, config: DictConfig, overrides: list[str]) -> Config:
    """Returns the config of a job as its training gets it, plain."""
    job = loader.load_sweep_config(config, overrides)
    instance = HydraConfig.instance()
    before = instance.cfg
    with read_write(job.hydra), open_dict(job.hydra):
        job.hydra.job.num, job.hydra.job.id = 0, "0"
        job.hydra.runtime.output_dir = "runs"  # of none
    try:
        instance.set_config(job)
        own = copy.deepcopy(job)
        with read_write(own), open_dict(own):
            del own["hydra"]
        found = configs.plain(own)
    finally:
        instance.cfg = before
    take_unchosen(found, job.hydra.overrides.task)
    return found


def with_value(config: Config, override: Override) -> Config | None:
    """Returns a config with another value for a key; None where Hydra has to say what that would be."""
    changed = node = dict(config)
    *groups, name = override.key_or_group.split(".")
    for group in groups:
        inner = node.get(group)
        if not isinstance(inner, dict):
            return None
        node[group] = inner = dict(inner)
        node = inner
    if isinstance(node.get(name), dict):
        return None
    node[name] = override.value()
    return changed


def logged_by(config: Config) -> dict[str, str | None]:
    """Returns what a training with this config logs: names, and the direction in which each is better."""
    task, metrics, data = (config.get(key) or {} for key in ("task", "metrics", "data"))
    kind: Any = configs.locate(task["_target_"], "task._target_")
    found: dict[str, str | None] = {}
    found |= kind.measures(build(data, "data").spec).logged(metrics)
    return found | logs_of(config.get("callbacks") or {})


def directions(
    given: list[str | None], metrics: list[str], known: dict[str, str | None], said: bool
) -> list[str]:
    """Returns for each metric "min" or "max": what is given, or what `known` has for it. Raises UserError: no
    job logs it, it does not say, or `hydra.sweeper.direction` has `said` the other one."""
    found = [mode or known.get(name) for name, mode in zip(metrics, given, strict=True)]
    for name, mode in zip(metrics, found, strict=True):
        if said and known.get(name) not in (mode, None):
            better = "it is better where it is " + {"min": "smaller", "max": "larger"}[str(known[name])]
            raise UserError(f"hydra.sweeper.direction: optimized_metric={name}: {better}; leave it out")
        if mode is None:
            what = (
                "no such metric is logged" if name not in known else "it does not say which way it is better"
            )
            own = "a metric of your own code needs optimized_mode=min or optimized_mode=max"
            raise UserError(f"optimized_metric={name}: {what}; {nearest(name, known)}; {own}")
    return [str(mode) for mode in found]
