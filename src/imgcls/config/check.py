"""Config checks: compare names and types of a config with what it calls, before anything is built. A node
with a `_target_` is a call: the other keys are the keyword arguments of the class or function that `_target_`
names. `check` compares all of them with its signature, so that `trainer.max_epochs=abc` or a key that no
parameter takes stops the run with one line; imgcls.config.build makes the call."""

import dataclasses
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from imgcls.config.paths import expand
from imgcls.config.words import our_word
from imgcls.errors import UserError, nearest

Target = Callable[..., Any]  # a class or function that a `_target_` names
HYDRAS = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_"}  # keys that are no arguments


def locate(target: str | None, where: str = "_target_") -> Target:
    """Returns the class or function of a dotted name. Raises UserError: it is not there, or is neither."""
    if not isinstance(target, str) or "." not in target.strip(".") or target.startswith("."):
        raise UserError(f"{where}={target}: expected a dotted name such as torch.optim.SGD")
    module_name, *names = target, target
    while "." in module_name:
        module_name = module_name.rpartition(".")[0]
        names = target[len(module_name) + 1 :].split(".")
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not target.startswith(f"{error.name}"):
                missing = f"{where}={target} needs the package {error.name}, which is not installed"
                raise UserError(missing) from error
            continue
        for name in names:
            if not hasattr(found, name):
                known = (n for n in vars(found) if not n.startswith("_"))
                raise UserError(f"{where}={target}: no {name!r} there; {nearest(name, known)}")
            found = getattr(found, name)
        if not callable(found):
            raise UserError(f"{where}={target} is no class or function")
        return found
    raise UserError(f"{where}={target}: there is no package {module_name!r}; correct the name or install it")


@functools.lru_cache(maxsize=256)
def hints_of(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Returns the type hint of each parameter of `target` (Any if none can be read), and whether it takes
    other keywords. A class that passes keywords on to its bases has their parameters too."""
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__[:-1] if "__init__" in vars(base)]
    named: dict[str, Any] = {}
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # of a builtin
            return named, True
        try:  # with the bounds of Annotated[…, Field(ge=0)]
            hints = typing.get_type_hints(function, include_extras=True)
        except (NameError, TypeError):  # names that the library imports for type checkers alone
            hints = {}
        single = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        named = {p.name: hints.get(p.name, Any) for p in single if p.name != "self"} | named
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return named, False
    return named, True


@functools.lru_cache(maxsize=256)  # to make one takes longer than to read a run's file
def adapter_of(hint: Any) -> TypeAdapter[Any] | None:
    """Returns what checks values against a type hint; None for one that pydantic can't check."""
    for own in (ConfigDict(arbitrary_types_allowed=True), None):  # a dataclass or model brings one
        with suppress(PydanticUserError):
            return TypeAdapter(hint, config=own)
    return None


def typed(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the type hint has it (a list becomes the tuple that is asked for). Raises UserError:
    the value is not of that type."""
    try:
        adapter = adapter_of(hint)
    except TypeError:  # it can't be kept
        adapter = adapter_of.__wrapped__(hint)
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        names = [part for part in first["loc"] if isinstance(part, str) and part.isidentifier()]
        several = len({e["loc"][:1] for e in error.errors()}) > 1
        if several and not (dataclasses.is_dataclass(hint) or hasattr(hint, "model_fields")):  # a union
            raise UserError(f"{where}={value}: expected {_name(hint)}") from error
        place = ".".join([where, *names]) if where else ".".join(names)
        given = first["input"] if names else value
        raise UserError(f"{place}={given}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _name(hint: Any) -> str:
    """Returns the words for a type that a person can set in a config."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:  # with bounds
        return _name(members[0])
    if hint in (int, float):
        return "a number"
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(map(str, members))
    if origin in (typing.Union, types.UnionType):
        plain_members = [m for m in members if not inspect.isclass(m) or m.__module__ == "builtins"]
        words = map(_name, plain_members)
        return " or ".join(dict.fromkeys(word for phrase in words for word in phrase.split(" or ")))
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint).replace("typing.", "")


def arguments(node: Mapping[str, Any], where: str, target: Target | None = None) -> dict[str, Any]:
    """Returns the keyword arguments of a node, and its `_args_` if it has any, checked against the signature
    of its `_target_`; nodes within are left alone. `target`: what `_target_` names, if the caller has found
    it. Raises UserError: a key that is no parameter of the target, or a value of a wrong type."""
    target = target or locate(node["_target_"], f"{where}._target_")
    named, open_ended = hints_of(target)
    positional = node.get("_args_", [])
    if not isinstance(positional, list | tuple):
        raise UserError(f"{where}._args_={positional}: expected a list")
    given = {key: value for key, value in node.items() if key not in HYDRAS}
    for key in given:
        if key not in named and not open_ended:
            advice = our_word("train", f"{where}.{key}") or nearest(key, named)
            raise UserError(f"{where}.{key}: {node['_target_']} takes no {key!r}; {advice}")

    def fitting(value: Any, name: str | None, place: str) -> Any:
        hint = named.get(name, Any) if isinstance(name, str) else Any
        return value if has_nodes(value) else typed(value, hint, f"{where}.{place}")

    checked = {key: fitting(value, key, key) for key, value in given.items()}
    if positional:
        names = dict(enumerate(_positional(target)))
        checked["_args_"] = [fitting(v, names.get(i), f"_args_.{i}") for i, v in enumerate(positional)]
    return checked


def parameters(target: Target) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a target by name; none of a builtin that does not say them."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return {}


def _positional(target: Target) -> list[str]:
    """Returns the names of the parameters that positional arguments go to, without those of `*args`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters(target).items() if parameter.kind in kinds]


def nodes(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields a node and all nodes in it, also those in lists, each with its dotted place."""
    if isinstance(value, Mapping):
        yield where, value
    elif not isinstance(value, list | tuple):
        return
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from nodes(inner, f"{where}.{key}".lstrip("."))


def has_nodes(value: Any) -> bool:
    """Says whether a value is a call, or has one in it."""
    return any("_target_" in node for _, node in nodes(value, ""))


def check(config: Mapping[str, Any], where: str = "") -> None:
    """Checks every node of a plain config that has a `_target_`, but for those within a call that makes them
    itself (`_recursive_: false`). Raises UserError at the first wrong one."""
    closed = "\n"  # the place of such a call
    for place, node in nodes(config, where):
        if "_target_" in node and not place.startswith(f"{closed}."):
            arguments(node, place)
            closed = closed if node.get("_recursive_", True) else place


def plain(config: Any) -> dict[str, Any]:
    """Returns a composed config as plain dicts and lists, all interpolations resolved, `~` in paths expanded.
    Raises UserError: a value that must be given is missing, or an interpolation leads nowhere."""
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"{missing[0]} must be given: {missing[0]}=…")
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise UserError("the config has an interpolation that leads back to itself") from error
    assert isinstance(resolved, dict)
    refuse_not_finite(resolved, "")
    return expand(resolved)


def refuse_not_finite(value: Any, where: str) -> None:
    """Raises UserError for NaN or infinity in a plain config: it would train, and every result be NaN."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            refuse_not_finite(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value}: expected a finite number")
