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

# No weights of a layer, though of more than one dimension: torchvision's names; timm's networks name their own.
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
    exempt = {*EMBEDDINGS, *getattr(network, "no_weight_decay", tuple)()}  # type: ignore[misc]
    decay = config.get("weight_decay") or 0.0
    target = configs.locate(config["_target_"], "optimizer._target_")
    muon = "muon" in f"{config['_target_']} {config.get('opt', '')}".lower()
    heads: Any = (
        network.head_names if muon else ()
    )  # Muon is for inner weights; AdamW takes the head (Jordan 2024)
    groups = parameter_groups(network, decay, exempt, heads, rate_scales or {})
    if rate_scales:
        if config.get("lr") is None:
            raise UserError(
                f"optimizer={config['_target_']} has no lr, which the layers would have a share of; set optimizer.lr"
            )
        for group in groups:
            group["lr"] = config["lr"] * group["scale"]
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("the network has no parameter to train")
    given: dict[str, Any] = {}
    if (
        fused
        and device.type in FUSED
        and "fused" in inspect.signature(target).parameters
        and not {"fused", "foreach", "differentiable"} & set(config)
    ):
        given["fused"] = True
    try:
        return target(groups, **configs.arguments(config, "optimizer"), **given)  # type: ignore[no-any-return]
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"optimizer={config['_target_']}: {' '.join(str(error).split())}") from error


def parameter_groups(
    network: nn.Module,
    decay: float,
    exempt: Collection[str],
    fallback: Collection[str],
    scales: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Returns the parameters by weight decay (none for vectors, biases, and names that match `exempt`) and by scale,
    the largest first. Frozen ones too: they have no gradient, so no step changes them, and they may learn later.

    Names that match `fallback` are marked `use_fallback`, which timm's Muon reads. (As timm's
    `param_groups_weight_decay`, whose import takes 2 s.)
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        bare = parameter.ndim <= 1 or name.endswith(".bias") or _matches(name, exempt)
        key = (-scales.get(name, 1.0), _matches(name, fallback), bool(decay) and not bare)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": decay * key[2], "scale": -key[0]}
        | ({"use_fallback": True} if key[1] else {})
        for key in sorted(groups)
    ]


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name, f"{p}.*") for p in patterns)
