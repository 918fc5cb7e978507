"""Optimizers of torch and timm, by config: parameter groups, and the fused step where there is one."""

import fnmatch
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from imgcls.config import check as configs
from imgcls.errors import UserError

# No weights of a layer, though of more than one dimension: torchvision's names; timm's networks say theirs.
EMBEDDINGS = ("*class_token", "*pos_embedding", "*relative_position_bias_table", "*layer_scale")
FUSED = ("cuda", "cpu", "mps")  # devices for which torch has fused steps


def build_optimizer(
    config: Mapping[str, Any],
    network: nn.Module,
    device: torch.device,
    fused: bool,
    rate_scales: Mapping[str, float] | None = None,
) -> Optimizer:
    """Builds an optimizer over two groups: weight decay for weights, none for norms, biases and embeddings.

    Args:
        fused: take the fused step where the optimizer has one for this device and the config says nothing.
        rate_scales: what each parameter's learning rate is multiplied by, by name; none: 1.

    Raises:
        UserError: the optimizer does not take these keys, values or parameters.
    """
    name = config["_target_"]
    target = configs.locate(name, "optimizer._target_")
    groups = parameter_groups(config, network, rate_scales or {})
    if rate_scales and config.get("lr") is None:
        raise UserError(
            f"optimizer={name} has no lr, which the layers would have a share of; set optimizer.lr"
        )
    for group in groups if rate_scales else ():
        group["lr"] = config["lr"] * group["scale"]
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("the network has no parameter to train")
    arguments = configs.arguments(config, "optimizer")
    has_fused = device.type in FUSED and "fused" in inspect.signature(target).parameters
    if fused and has_fused and not {"fused", "foreach", "differentiable"} & set(config):
        arguments["fused"] = True
    try:
        return target(groups, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"optimizer={name}: {' '.join(str(error).split())}") from error


def parameter_groups(
    config: Mapping[str, Any], network: nn.Module, scales: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Returns the parameters by scale, the largest first, and weight decay: none for vectors and embeddings.

    Frozen ones too: they have no gradient, so no step changes them, and they may learn later. Muon is for
    inner weights: the head is marked `use_fallback`, for which timm's Muon takes AdamW (Jordan 2024).
    (timm's `param_groups_weight_decay` knows no scales, and its import takes 2 s.)
    """
    decay = config.get("weight_decay") or 0.0
    exempt = {*EMBEDDINGS, *getattr(network, "no_weight_decay", tuple)()}
    muon = "muon" in f"{config['_target_']} {config.get('opt', '')}".lower()
    fallback: tuple[str, ...] = getattr(network, "head_names", ()) if muon else ()
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        bare = parameter.ndim <= 1 or name.endswith(".bias") or matches(name, exempt)
        key = (-scales.get(name, 1.0), matches(name, fallback), bool(decay) and not bare)
        groups.setdefault(key, []).append(parameter)
    out = []
    for scale, other, decayed in sorted(groups):
        group = {"params": groups[scale, other, decayed], "weight_decay": decay * decayed, "scale": -scale}
        out.append(group | ({"use_fallback": True} if other else {}))
    return out


def matches(name: str, patterns: Collection[str]) -> bool:
    """Says whether a parameter, or a module that it lies in, matches one of the patterns."""
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name, f"{p}.*") for p in patterns)
