"""Calls that a config describes: made after the check of names and types, those within them by Hydra."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate

from imgcls.config.check import Target, arguments, has_nodes, locate, nodes
from imgcls.errors import CodeFailed, UserError

Find = Callable[[str], Target]  # returns what a `_target_` names


def build(
    node: Mapping[str, Any],
    where: str,
    kind: type | None = None,
    target: Target | None = None,
    find: Find | None = None,
    **given: Any,
) -> Any:
    """Calls what a node's `_target_` names with the node's other keys and `given`, whether the node says
    `_partial_` or not. With a `kind`, the target must be a class of that kind.

    A node of a checkpoint could name anything. For it the caller finds `target` in the allow-list
    (imgcls.config.allowed) and gives it here, and then the node may have none within it; or the caller gives
    `find`, which returns what is allowed alone, also for the nodes within.

    Raises UserError: a key or a value does not fit, or is given already; or a target raised any exception,
    which is the cause.
    """
    for key in given.keys() & node.keys():  # whoever calls this would silently win
        if type(node[key]) is not type(given[key]) or node[key] != given[key]:
            raise UserError(f"{where}.{key}={node[key]}: another part of the config says it; leave it out")
    call = recipe(node, where, kind, target, find)
    _bind(call.func, where, node, call.args, call.keywords | given)
    try:
        return call(**given)
    except UserError:
        raise
    except Exception as error:
        raise _failure(error, where, node) from error


def recipe(
    node: Mapping[str, Any],
    where: str,
    kind: type | None = None,
    target: Target | None = None,
    find: Find | None = None,
) -> functools.partial[Any]:
    """Returns the call that a node describes, checked, for the caller to add arguments to; the nodes within
    are built. Arguments and errors are those of `build`."""
    found = target or _found(node.get("_target_"), where, find)
    if kind is not None and not (inspect.isclass(found) and issubclass(found, kind)):
        expected = f"expected a class of the kind {kind.__name__}"
        raise UserError(f"{where}._target_={node['_target_']}: {expected}; it was not called")
    if target is not None and find is None:
        refuse_nested(node, where)
    keywords = arguments(node, where, found)
    nested = {key: value for key, value in keywords.items() if has_nodes(value)}
    if nested and node.get("_recursive_", True):
        keywords |= _built(nested, where, find)
    return functools.partial(found, *keywords.pop("_args_", ()), **keywords)


def refuse_nested(node: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a node with nodes within it, which were not looked up in the allow-list."""
    for place, inner in nodes(node, where):
        if inner is not node and "_target_" in inner:
            refused = f"{place}._target_={inner['_target_']}: a checkpoint may name no calls within another"
            raise UserError(f"{refused}; it was not called; take a function of your own that makes both")


def _found(name: Any, where: str, find: Find | None) -> Target:
    """Returns what a `_target_` names."""
    if find is None or find is locate:
        return locate(name, f"{where}._target_")
    return find(str(name))


def _built(nested: dict[str, Any], where: str, find: Find | None) -> dict[str, Any]:
    """Returns values with what Hydra built of the nodes in them, after a check of all. Hydra's own list of
    what may be called would have to name the types of results too, which nobody knows; `find` decides."""
    ready = {key: _checked(value, f"{where}.{key}", find) for key, value in nested.items()}
    try:
        whitelist = UNSAFE_DISABLE_EXECUTION_CHECKS
        made: dict[str, Any] = instantiate({**ready, "_convert_": "all"}, _execution_whitelist_=whitelist)
        return made
    except UserError:
        raise
    except Exception as error:  # Hydra notes the place in the config, with or without marks between the keys
        noted = [note.removeprefix("full_key: ") for note in getattr(error, "__notes__", [])]
        inner = {_bare(place): (place, node) for place, node in nodes(nested, where)}
        place, node = inner.get(_bare(f"{where}{noted[0] if noted else ''}"), (where, {"_target_": "…"}))
        raise _failure(error, place, node) from error


def _bare(place: str) -> str:
    return re.sub(r"[.\[\]]", "", place)


def _checked(value: Any, where: str, find: Find | None) -> Any:
    """Returns a value with the nodes in it checked, as Hydra takes it. Raises UserError: a node does not fit
    its target, or a text would be read as an interpolation."""
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{where}={value}: a text with ${{ can't stand within a nested call")
    if isinstance(value, list | tuple):
        return [_checked(item, f"{where}.{i}", find) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    items: dict[str, Any] = dict(value)
    if "_target_" in value:
        target = _found(value["_target_"], where, find)
        keywords = arguments(value, where, target)
        plain = {k: v for k, v in keywords.items() if not isinstance(items[k], Mapping | list | tuple)}
        items |= plain  # the others stay as they are: OmegaConf knows no dataclass with bounds
        _bind(target, where, value, keywords.pop("_args_", ()), keywords, value.get("_partial_") is True)
    return {key: _checked(item, f"{where}.{key}", find) for key, item in items.items()}


def _bind(
    target: Target, where: str, node: Mapping[str, Any], args: Any, keywords: Any, partial: bool = False
) -> None:
    """Raises UserError where a target can't be called with these arguments; a partial one may get more."""
    try:
        signature = inspect.signature(target)
    except ValueError:  # of a builtin
        return
    try:
        (signature.bind_partial if partial else signature.bind)(*args, **keywords)
    except TypeError as error:
        raise UserError(f"{where}: {node['_target_']} can't be called so: {error}") from error


def _failure(error: Exception, where: str, node: Mapping[str, Any]) -> UserError:
    """Returns the line for what a target raised."""
    said = " ".join(str(error).split())
    if isinstance(error, ValueError) or type(error).__module__ != "builtins":  # the target's own words
        return UserError(f"{where}: {said}")
    place = f"{where}._target_={node['_target_']}"  # which may be code that is being written
    return CodeFailed(f"{place}: {type(error).__name__}: {said}; the traceback is in run.log")
