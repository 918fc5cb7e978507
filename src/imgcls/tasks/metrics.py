"""Metrics of a split: the task's own and those of the config, and the direction in which each is better."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from imgcls.config import check as configs
from imgcls.config.build import Find, build
from imgcls.errors import UserError
from imgcls.tasks.measures import MeanLoss

Better = Literal["min", "max"] | None  # None: the metric does not say
HELD = 2**24  # numbers that wait for the added metrics at most
NO_READS = {"validate_args": False, "compute_groups": False}  # both would read from the device


class Outputs(NamedTuple):
    """What a task computes of a batch of N samples."""

    loss: Tensor  # (), the mean over the samples
    logits: Tensor  # (N, K) float32, or what the network of the task returns
    targets: Tensor  # what the metrics compare them with
    images: Tensor | None = None  # (N, C, H, W) as the network got them; in training, where there are any

    def of_no_sample(self) -> "Outputs":
        """Returns outputs like these, of no sample."""
        return Outputs(torch.zeros_like(self.loss), self.logits[:0], self.targets[:0])


class Answers(NamedTuple):
    """What a task says of N images: labels with a number each, the best first; without labels K numbers."""

    labels: list[list[str]] | None
    numbers: list[Tensor]
    several: bool = False  # whether images have different numbers of labels


class Metrics(nn.Module):
    """What is measured of a split: the mean loss, the metrics that a task has, and those that a config adds.

    Args:
        own: the task's; they get its outputs as they are.
        added: by name, of conf/metrics; they get probabilities, or what else the task gives to metrics.
    """

    def __init__(
        self, own: Mapping[str, Metric], added: Mapping[str, Metric | MetricCollection] | None = None
    ) -> None:
        super().__init__()
        self.loss, self.own, self.added = MeanLoss(), nn.ModuleDict(own), nn.ModuleDict(added or {})
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def entries(self) -> dict[str, Metric | MetricCollection]:
        """Returns the metrics and collections by name."""
        return {**self.own, "loss": self.loss, **self.added}  # type: ignore[dict-item]

    def named(self) -> Iterator[tuple[str, Metric]]:
        """Yields the metrics by name, also those of collections."""
        for name, entry in self.entries().items():
            yield from entry.items() if isinstance(entry, MetricCollection) else [(name, entry)]

    def better(self) -> dict[str, Better]:
        """Returns the names of all values, and the direction in which each is better."""
        ways = (directions(entry, name) for name, entry in self.entries().items())
        return {name: way for found in ways for name, way in found.items()}

    def update(self, outputs: Outputs, measured: Callable[[Outputs], tuple[Tensor, Tensor]]) -> None:
        """Measures a batch; `measured` gives what the added metrics get."""
        self.loss.update(outputs.loss.detach(), len(outputs.targets))
        for own in self.own.children():
            own.update(outputs.logits, outputs.targets)  # type: ignore[operator]
        if len(self.added):
            self.waiting.append(measured(outputs))
            if sum(given.numel() for given, _ in self.waiting) > HELD:
                self.update_added()

    def update_added(self) -> None:
        """Gives the added metrics all batches that wait: many of them read from the device, which so happens
        at the end, or once in so many numbers, and not in each step."""
        for given in [given for given in self.waiting if len(given[1])] or self.waiting[:1]:
            for added in self.added.children():
                added.update(*given)  # type: ignore[operator]
        self.waiting.clear()

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Returns the values by name, over all batches and processes, and starts anew."""
        self.update_added()
        values: dict[str, Tensor] = {}
        for name, entry in self.entries().items():
            found = entry.compute()
            values |= found if isinstance(found, dict) else {name: found}
            entry.reset()
        return values

    def state(self) -> dict[str, dict[str, Any]]:
        """Returns the sums so far of each metric, on the CPU, for a checkpoint within an epoch."""
        return {name: {k: on(v, "cpu") for k, v in one.metric_state.items()} for name, one in self.named()}


def on(state: Tensor | list[Tensor], device: torch.device | str) -> Tensor | list[Tensor]:
    """Returns a metric's state on another device."""
    return [part.to(device) for part in state] if isinstance(state, list) else state.to(device)


def directions(entry: Metric | MetricCollection, name: str) -> dict[str, Better]:
    """Returns the names of a metric's values, and the direction in which each is better; one of several
    values has them in `better`."""
    known: dict[str, Better] | None = getattr(entry, "better", None)
    if known is not None:
        return known
    metrics = dict(entry.items()) if isinstance(entry, MetricCollection) else {name: entry}
    return {name: direction(metric) for name, metric in metrics.items()}


def direction(metric: nn.Module) -> Better:
    """Returns the direction in which a metric says that it is better."""
    higher = getattr(metric, "higher_is_better", None)
    return None if higher is None else "max" if higher else "min"


@dataclass
class Measures:
    """What a task says of its metrics.

    Args:
        evaluation: the metrics that validation and test always have; they get logits and targets.
        training: likewise of training, beside the loss.
        arguments: such as `num_classes`, which each metric of the config gets that has such a parameter.
        example: what a metric of the config gets, such as probabilities and targets, for a few samples: it is
            tried on them at the start.
    """

    evaluation: dict[str, Metric] = field(default_factory=dict)
    training: dict[str, Metric] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    example: tuple[Tensor, Tensor] | None = None

    def of_split(self, added: Mapping[str, Any], find: Find = configs.locate) -> Metrics:
        """Returns all metrics of a split that is evaluated.

        Args:
            added: conf/metrics: by name, the metric's `_target_` and its arguments; null: none.
            find: returns what a `_target_` names; of a checkpoint, what is allowed alone.

        Raises:
            UserError: a node is no metric, does not work on the example, has not one number as its value, or
                a name that can't be one, or that of another value.
        """
        known = Metrics(self.evaluation).better()
        built: dict[str, Metric | MetricCollection] = {}
        for name, node in added.items():
            if not node:
                continue
            check_name(name)
            built[name] = self.build(node, f"metrics.{name}", find)
            found = directions(built[name], name)
            if twice := [value for value in found if value in known]:
                raise UserError(f"metrics.{name}: {twice[0]} is measured already; take another name for it")
            known |= found
        return Metrics(self.evaluation, built)

    def build(self, node: Mapping[str, Any], where: str, find: Find) -> Metric | MetricCollection:
        """Builds a metric of the config, and tries it."""
        tried = build(filled(node, self.arguments, find), where, find=find)  # it looks at its arguments
        metric = build(filled(node, NO_READS | self.arguments, find), where, find=find)
        if not isinstance(metric, Metric | MetricCollection):
            raise UserError(f"{where}._target_={node['_target_']}: expected a metric of torchmetrics")
        values = {} if self.example is None else try_metric(tried, where, *self.example)
        if isinstance(values, dict) and values and not hasattr(metric, "better"):
            ways = directions(metric, "")
            metric.better = {name: ways.get(name, direction(metric)) for name in values}  # type: ignore
        return metric

    def logged(self, added: Mapping[str, Any]) -> dict[str, Better]:
        """Returns the names of what a training logs, each with the direction in which it is better."""
        train, val = Metrics(self.training).better(), self.of_split(added).better()
        named: dict[str, Better] = {"lr": None} | {f"train/{name}": way for name, way in train.items()}
        return named | {f"val/{name}": way for name, way in val.items()}


def filled(node: Any, arguments: Mapping[str, Any], find: Find) -> Any:
    """Returns a node, and those within it, with the arguments that their targets have and they do not set."""
    if isinstance(node, list):
        return [filled(item, arguments, find) for item in node]
    if not isinstance(node, Mapping):
        return node
    inner = {key: filled(value, arguments, find) for key, value in node.items()}
    if "_target_" not in node:
        return inner
    parameters = configs.parameters(find(str(node["_target_"])))
    return {key: value for key, value in arguments.items() if key in parameters} | inner


def check_name(name: str) -> None:
    """Raises UserError for a name that torch can't give to a module."""
    try:
        nn.ModuleDict({name: nn.Identity()})
    except KeyError as error:
        raise UserError(f"metrics.{name}: {error.args[0]}; take another name") from error


def try_metric(metric: Metric | MetricCollection, where: str, given: Tensor, targets: Tensor) -> Any:
    """Returns the value of a metric on an example, or several by name. Raises UserError: it fails there, or a
    value is not one number."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a few samples have not all classes
            metric.update(given, targets)
            values = metric.compute()
    except Exception as error:  # each metric has errors of its own
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} does not fit this task: {said}") from error
    for value in values.values() if isinstance(values, dict) else [values]:
        if not isinstance(value, Tensor) or value.numel() != 1:
            count = f"{value.numel()} numbers" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{where} gives {count}; expected one number, such as with average=macro")
    return values


def logs_of(callbacks: Mapping[str, Any]) -> dict[str, Better]:
    """Returns the names of what the callbacks of a config log, each with the direction in which it is better,
    as `logs` of their classes says; `images_per_second` and `seconds` are always logged."""
    found: dict[str, Better] = {"images_per_second": "max", "seconds": "min"}
    for name, node in callbacks.items():
        if node and "_target_" in node:
            found |= getattr(configs.locate(node["_target_"], f"callbacks.{name}._target_"), "logs", {})
    return found
