"""Allow-list for checkpoints: refuses classes and functions of packages that the user does not trust."""

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from imgcls.config.project import own_project
from imgcls.errors import UserError

# Our own networks and data sets are defined here; the builders build them from a config, or are their bases.
ROOMS = {
    "backbone": "imgcls.backbones.", "data": "imgcls.data.", "task": "imgcls.tasks.",
    "metric": "imgcls.tasks.auroc",
}  # fmt: skip
BUILDERS = (
    "imgcls.backbones.build", "imgcls.backbones.hub", "imgcls.backbones.preprocessing",
    "imgcls.backbones.weights", "imgcls.data.module", "imgcls.data.memory", "imgcls.tasks.task",
)  # fmt: skip
METRICS = ("torchmetrics", "torchmetrics.classification", "torchmetrics.regression")  # of numbers alone


def allowed(target: object, kind: str, trust: Iterable[str] = ()) -> Callable[..., Any]:
    """Returns the function or class that a checkpoint names for its `backbone`, `data` or `task`. It must be
    defined in our own modules of that kind, or in a package that the user trusts: one of `trust`, or that
    of the user's own project. The name is split once, into module and object, so that it can't reach what a
    module imports. Raises UserError: it is of a package that is not trusted, and was not imported; or there
    is no such object."""
    where = f"the checkpoint's {kind}._target_={target}"
    module_name, _, name = str(target).rpartition(".")
    if kind == "backbone" and (builder := registered(module_name, name)) is not None:
        return builder
    package, ours = module_name.partition(".")[0], module_name.startswith(ROOMS.get(kind, " "))
    project = own_project()
    if project is not None and package == project.package:
        project.enter()  # also in Python, where no command did
    trusted = {*trust, project.package if project else None} - {None, "imgcls"}
    if not ours and package not in trusted:
        trusting = f"add trust=[{package}] if you trust all of its code"
        advice = trusting if package.isidentifier() else "don't use it"
        raise UserError(f"{where}: {package or target} is not trusted and was not imported; {advice}")
    try:
        found = vars(importlib.import_module(module_name)).get(name)
    except ModuleNotFoundError as error:
        advice = "install it, or put its folder on PYTHONPATH"
        raise UserError(f"{where}: the module {error.name} is not there; {advice}") from error
    home = str(getattr(found, "__module__", ""))
    defined = home == module_name if ours else home.partition(".")[0] in trusted
    if not (inspect.isfunction(found) or inspect.isclass(found)) or not defined or home in BUILDERS:
        expected = f"expected a function or class that is defined in {module_name}"
        raise UserError(f"{where}: {expected}; it was not called")
    return found


def registered(module_name: str, name: str) -> Callable[..., Any] | None:
    """Returns the classification network of torchvision that a name means, or None. They are those of its
    registry, the same that `imgcls.backbones.torchvision` builds by name; they take plain values alone, and
    the caller leaves out `weights`, which would fetch a file."""
    if module_name.partition(".")[0] != "torchvision":
        return None
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    builder: Callable[..., Any] = models.get_model_builder(name)
    return builder if module_name in (models.__name__, builder.__module__) else None


def allowed_metric(target: str, trust: Iterable[str] = ()) -> Callable[..., Any]:
    """Returns the metric that a checkpoint names: one of torchmetrics' for numbers, or one of a package that
    the user trusts. Raises UserError as `allowed`."""
    module_name, _, name = target.rpartition(".")
    if module_name not in METRICS or not name.isidentifier():
        return allowed(target, "metric", trust)
    found = getattr(importlib.import_module(module_name), name, None)
    if not inspect.isclass(found) or not found.__module__.startswith("torchmetrics."):
        raise UserError(f"the checkpoint's metric _target_={target}: there is no such metric")
    return found
