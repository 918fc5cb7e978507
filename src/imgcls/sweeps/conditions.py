"""Conditions of a search: what is varied only where another parameter has a certain value (`sweep.when`)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from imgcls.errors import UserError, nearest
from imgcls.sweeps.space import choices

Space = Mapping[str, Override]


@dataclass(frozen=True)
class Branch:
    """The part of a space that belongs to some values of the parameter `key`."""

    condition: str  # as it was written: optimizer=sgd
    key: str
    values: list[str]
    space: Space

    def holds(self, found: Mapping[str, Any]) -> bool:
        return str(found.get(self.key)) in self.values


def read_branches(loader: ConfigLoader, when: Mapping[str, Mapping[str, Any]], space: Space) -> list[Branch]:
    """Returns the branches of `sweep.when`. Raises UserError: a condition is of no parameter that is varied
    before it, or of a value that this doesn't take."""
    parser, branches = OverridesParser.create(config_loader=loader), list[Branch]()
    for condition, params in when.items():
        override = parser.parse_override(condition)
        key, values = override.get_key_element(), choices(override)
        known = {name: choices(one) for name, one in space.items()}
        for branch in branches:
            for name, one in branch.space.items():
                known[name] = [*known.get(name, []), *choices(one)]
        if key not in known:
            raise UserError(f"sweep.when: {condition}: {key} is not varied; {nearest(key, known)}")
        if unknown := set(values) - set(known[key]):
            raise UserError(f"sweep.when: {condition}: {nearest(min(unknown), known[key])}")
        texts = [f"{name}={value}" for name, value in params.items()]
        own = {one.get_key_element(): one for one in parser.parse_overrides(texts)}
        branches.append(Branch(condition, key, values, own))
    return branches


def valued(space: Space, branches: Iterable[Branch], value: Callable[[str, Override], Any]) -> dict[str, Any]:
    """Returns the value of each key of one trial, in which `value` gives that of a parameter. A key has a
    parameter for each branch, and one for trials in which no branch with it holds: what a sampler learns of
    one is of no use for another."""
    branches = list(branches)
    inner = {key for branch in branches for key in branch.space}
    found = {key: value(key, override) for key, override in space.items() if key not in inner}
    for branch in branches:
        if branch.holds(found):
            named = {key: (f"{key} [{branch.condition}]", one) for key, one in branch.space.items()}
            found |= {key: value(*parameter) for key, parameter in named.items()}
    return found | {key: value(key, override) for key, override in space.items() if key not in found}
