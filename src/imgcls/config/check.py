"""Config checks: compare names and types of a config with what it calls, before anything is built. A node
with a `_target_` is a call: the other keys are the keyword arguments of the class or function that `_target_`
names. `check` compares all of them with its signature, so that `trainer.max_epochs=abc` or a key that no
parameter takes stops the run with one line; `build` makes the call."""

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
from imgcls.errors import UserError, nearest

Target = Callable[..., Any]  # a class or function that a `_target_` names


def locate(target: str, where: str = "_target_") -> Target:
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
def _parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Returns the type hint of each parameter of `target` (Any if none can be read), and whether it takes
    other keywords. A class that passes keywords on to its bases has their parameters too."""
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__[:-1] if "__init__" in vars(base)]
    named: dict[str, Any] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        try:  # with the bounds of Annotated[…, Field(ge=0)]
            hints = typing.get_type_hints(function, include_extras=True)
        except (NameError, TypeError):  # names that the library imports for type checkers alone
            hints = {}
        single = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        named = {p.name: hints.get(p.name, Any) for p in single if p.name != "self"} | named
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return named, False
    return named, True


def typed(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the type hint has it (a list becomes the tuple that is asked for). Raises UserError:
    the value is not of that type."""
    for own in (ConfigDict(arbitrary_types_allowed=True), None):  # a dataclass or model brings one
        with suppress(PydanticUserError):
            adapter = TypeAdapter(hint, config=own)
            break
    else:
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
    """Returns the keyword arguments of a node, checked against the signature of its `_target_`. `target`:
    what `_target_` names, if the caller has found it. Raises UserError: a key that is no parameter of the
    target, or a value of a wrong type."""
    named, open_ended = _parameters(target or locate(node["_target_"], f"{where}._target_"))
    checked = {}
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in named and not open_ended:
            raise UserError(f"{where}.{key}: {node['_target_']} takes no {key!r}; {nearest(key, named)}")
        nested = isinstance(value, Mapping) and any("_target_" in n for _, n in nodes(value, ""))
        checked[key] = value if nested else typed(value, named.get(key, Any), f"{where}.{key}")
    return checked


def nodes(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields a node and all nodes below it, each with its dotted place."""
    yield where, config
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from nodes(value, f"{where}.{key}".lstrip("."))


def check(config: Mapping[str, Any], where: str = "") -> None:
    """Checks every node of a plain config that has a `_target_`. Raises UserError at the first wrong one."""
    for place, node in nodes(config, where):
        if "_target_" in node:
            arguments(node, place)


def build(
    node: Mapping[str, Any], where: str, kind: type | None = None, target: Target | None = None, **given: Any
) -> Any:
    """Calls what a node's `_target_` names with the node's other keys and `given`. A node of a checkpoint
    could name anything: for it the caller finds `target` in the allow-list (imgcls.config.allowed) and gives
    it here. With a `kind`, the target must be a class of that kind. Raises UserError: a key or a value does
    not fit, or the target raised any exception, which is the cause."""
    target = target or locate(node["_target_"], f"{where}._target_")
    if kind is not None and not (inspect.isclass(target) and issubclass(target, kind)):
        expected = f"expected a class of the kind {kind.__name__}"
        raise UserError(f"{where}._target_={node['_target_']}: {expected}; it was not called")
    keywords = arguments(node, where, target)
    try:
        inspect.signature(target).bind(**keywords, **given)
    except TypeError as error:
        raise UserError(f"{where}: {node['_target_']} can't be called so: {error}") from error
    try:
        return target(**keywords, **given)
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        if isinstance(error, ValueError) or type(error).__module__ != "builtins":  # the target's own words
            raise UserError(f"{where}: {said}") from error
        place = f"{where}._target_={node['_target_']}"  # which may be code that is being written
        raise UserError(f"{place}: {type(error).__name__}: {said}; the traceback is in run.log") from error


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
