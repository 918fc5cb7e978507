"""Optimizers of torch and timm, by config: groups of parameters, and their rates and decays."""

import fnmatch
import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.optim import Optimizer

from imgcls.config.build import recipe
from imgcls.config.check import parameters
from imgcls.config.optimizer import OptimizerRules
from imgcls.config.training import Node
from imgcls.errors import UserError, nearest

log = logging.getLogger(__name__)
# No weights of a layer, though of more than one dimension: torchvision's names; timm's networks say theirs.
EMBEDDINGS = ("*class_token", "*pos_embedding", "*relative_position_bias_table", "*layer_scale")
Scales = Mapping[str, float]  # what the learning rate of each parameter is multiplied by, by name


def with_rate(config: Node, samples: int) -> Node:
    """Returns an optimizer's config with its rate: `lr_per_256` times the `samples` of a step / 256, where it
    has that key."""
    rules = OptimizerRules.read(config)
    if rules.lr_per_256 is None:
        return config
    rate = rules.lr_per_256 * samples / 256
    rank_zero_only(log.info)(
        f"rate: {rate:g}, {rules.lr_per_256:g} for each 256 of {samples:,} samples a step"
    )
    return {**config, "lr": rate}


def build_optimizer(
    config: Node, network: nn.Module, device: torch.device, fused: bool, scales: Scales | None = None
) -> Optimizer:
    """Builds an optimizer over groups of parameters: weight decay for weights, none for norms, biases and
    embeddings, but where the config has `groups` of its own. With `fused` it takes the fused step where the
    optimizer has one for this device and the config says nothing. Raises UserError: the optimizer does not
    take these keys, values or parameters."""
    name = config["_target_"]
    rules = OptimizerRules.read(config)
    call = recipe(rules.without(config), "optimizer")
    check_options(rules, parameters(call.func), name)
    groups = parameter_groups(config, rules, network, scales or {})
    if scales and config.get("lr") is None:
        fault = f"optimizer={name} has no lr, which the layers would have a share of"
        raise UserError(f"{fault}; set optimizer.lr")
    for group in groups:
        if scales:
            group["lr"] = group.get("lr", config["lr"]) * group["scale"]
        if rules.decay_without_lr:
            group["weight_decay"] /= group.get("lr", config.get("lr") or 1.0) or 1.0
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("the network has no parameter to train")
    # The devices for which torch has fused steps.
    has_fused = device.type in ("cuda", "cpu", "mps") and "fused" in parameters(call.func)
    chosen = {"fused", "foreach", "differentiable"} & set(config)
    try:
        return call(groups, fused=True) if fused and has_fused and not chosen else call(groups)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"optimizer={name}: {' '.join(str(error).split())}") from error


def check_options(rules: OptimizerRules, known: Collection[str], optimizer: str) -> None:
    """Raises UserError for an option of a rule that the optimizer does not have: torch would keep it, and do
    nothing with it."""
    for key, rule in rules.groups.items():
        for option in rule.options().keys() - {*known, "lr", "weight_decay", "epochs"}:
            fault = f"optimizer.groups.{key}.{option}: {optimizer} takes no such option"
            raise UserError(f"{fault}; {nearest(option, known)}")


def parameter_groups(
    config: Node, rules: OptimizerRules, network: nn.Module, scales: Scales
) -> list[dict[str, Any]]:
    """Returns the parameters by rule, and by scale, the largest first, and weight decay: by default none for
    vectors and embeddings. Frozen ones too, which may learn later. Muon is for inner weights: the head is
    marked `use_fallback`, for which timm's Muon takes AdamW (Jordan 2024). (timm's own groups know no scales,
    and import for 2 s.)"""
    decay = config.get("weight_decay") or 0.0
    exempt = {*EMBEDDINGS, *getattr(network, "no_weight_decay", tuple)()}
    muon = "muon" in f"{config['_target_']} {config.get('opt', '')}".lower()
    fallback: tuple[str, ...] = getattr(network, "head_names", ()) if muon else ()
    rule_of = rules_by_name(rules, network)
    groups: dict[tuple[str, float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        bare = parameter.ndim <= 1 or name.endswith(".bias") or matches(name, exempt)
        rule = rule_of.get(name, "")
        key = (rule, -scales.get(name, 1.0), matches(name, fallback), bool(decay) and not bare)
        groups.setdefault(key, []).append(parameter)
    out = []
    for rule, scale, other, decayed in sorted(groups):
        options = rules.groups[rule].options() if rule else {}
        wanted = decay if rule else decay * decayed  # what a rule names decays unless the rule says otherwise
        group = {"params": groups[rule, scale, other, decayed], "weight_decay": wanted, "scale": -scale}
        out.append(group | options | ({"use_fallback": True} if other else {}))
    return out


def rules_by_name(rules: OptimizerRules, network: nn.Module) -> dict[str, str]:
    """Returns the first rule that names each parameter. Raises UserError for a rule that names none."""
    kinds = {name: kinds_of(name, network) for name, _ in network.named_parameters()}
    found: dict[str, str] = {}
    for key, rule in rules.groups.items():
        named = [name for name in kinds if matches(name, rule.match) or kinds[name] & {*rule.match}]
        if not named:
            expected = "a name or a pattern such as *.bias, or one of norm, bias, head"
            given = ", ".join(rule.match)
            raise UserError(
                f"optimizer.groups.{key}.match={given}: no parameter is named so; expected {expected}"
            )
        found |= {name: key for name in named if name not in found}
    return found


def kinds_of(name: str, network: nn.Module) -> set[str]:
    """Returns the words for a parameter: norm (of a normalising layer), bias (of any other), head."""
    module = network.get_submodule(name.rpartition(".")[0])
    norm = "norm" in type(module).__name__.lower()
    kinds = {"norm"} if norm else {"bias"} if name.endswith("bias") else set()
    return kinds | ({"head"} if matches(name, getattr(network, "head_names", ())) else set())


def matches(name: str, patterns: Collection[str]) -> bool:
    """Says whether a parameter, or a module that it lies in, matches one of the patterns."""
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name, f"{p}.*") for p in patterns)


def give_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that begin to learn a momentum of zero, where others of their group have one: torch's
    fused SGD takes that of all or none. Without dampening, the first step is the same with it."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        missing = [p for p in group["params"] if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        if group["fused"] and len(missing) < len(group["params"]):
            for parameter in missing:
                if parameter.requires_grad:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
