"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) by the library peft."""

import copy
import logging
import re
import warnings
from collections import Counter

import torch
from torch import nn

from imgcls.backbones.layers import head_names, on_meta
from imgcls.config.training import LoRA
from imgcls.errors import UserError, nearest
from imgcls.processes import rank

log = logging.getLogger(__name__)
LINEAR, CONVOLUTIONS = ("Linear",), ("Conv2d", "Conv2dSame")  # the last is timm's, of TensorFlow's padding
MARK = "lora_"  # in the names of adapters within a network


def add_adapters(network: nn.Module, lora: LoRA, shape: tuple[int, int, int]) -> None:
    """Adds adapters, which change nothing at first, to layers of a network for images of a shape (C, H, W).
    Raises UserError: as `chosen_layers`."""
    chosen = chosen_layers(network, lora, layers_for_adapters(network, shape))
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    options = lora.model_dump(exclude={"target_modules"})
    pattern = "|".join(map(re.escape, chosen))  # of which peft takes whole names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of language models, which this is not
        inject_adapter_in_model(LoraConfig(target_modules=pattern, **options), network)
    network.requires_grad_()  # what learns, the Finetune callback says
    if rank() == 0:
        size = sum(p.numel() for name, p in network.named_parameters() if MARK in name)
        log.info(f"lora: {size:,} parameters in {len(chosen)} layers, {chosen[0]} to {chosen[-1]}")


def chosen_layers(network: nn.Module, lora: LoRA, able: dict[str, str]) -> list[str]:
    """Returns the layers that get adapters: those of `target_modules`, else all linear layers, or all
    convolutions where there are more of them; a line says which linear layers can have none. Raises
    UserError: there is no such layer, or one can't have an adapter."""
    if lora.target_modules is not None:
        return list(
            dict.fromkeys(n for target in lora.target_modules for n in matching(network, target, able))
        )
    if not able:
        why = "the network has no plain Linear or Conv2d below its head"
        raise UserError(f"finetune=lora: {why}; choose another finetune=…")
    linear = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    left = sorted(name for name in linear - able.keys() if not within(name, head_names(network)))
    if left and rank() == 0:
        advice = "attention of timm's networks would get them"
        text = "lora: no adapters beside %d linear layers, whose weights the network reads itself: %s, …; %s"
        log.warning(text, len(left), left[0], advice)
    by_kind = Counter(kind in LINEAR for kind in able.values())
    return [name for name, kind in able.items() if (kind in LINEAR) == (2 * by_kind[True] >= len(able))]


def layers_for_adapters(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, str]:
    """Returns the layers that can have an adapter, and be merged with it, and what kind each is: those that
    the network calls (some read their weights alone), are no head, and are not in groups or dilated."""
    called, heads = set[nn.Module](), head_names(network)
    hooks = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in network.modules()]
    try:
        on_meta(network, 2, *shape)
    except NotImplementedError:  # an operator without a meta kernel
        called.update(network.modules())
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, module in network.named_modules():
        plain = not isinstance(module, nn.Conv2d) or (module.groups == 1 and set(module.dilation) == {1})
        kind = type(module).__name__  # others may change their weights before use
        if kind in LINEAR + CONVOLUTIONS and plain and module in called and not within(name, heads):
            found[name] = kind
    return found


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def matching(network: nn.Module, target: str, able: dict[str, str]) -> list[str]:
    """Returns the layers whose name is `target` or ends with it, as peft has it. Raises UserError: there is
    none, or one of them can't have an adapter."""
    named = dict(network.named_modules())
    found = [name for name in named if name == target or name.endswith(f".{target}")]
    wrong = [name for name in found if name not in able]
    if not found or wrong:
        given = f"backbone.lora.target_modules: {target!r}"
        is_a = f"{wrong[0]} is the head, or a {type(named[wrong[0]]).__name__}" if wrong else "no such layer"
        ends = dict.fromkeys(name.rpartition(".")[2] for name in able)
        expected = "expected Linear or Conv2d without groups, called by the network and not its head"
        raise UserError(f"{given}: {is_a}; {expected}; {nearest(target, ends)}")
    return found


def to_channels_last(network: nn.Module) -> None:
    """Puts the weights of convolutions in the order channels last, but those of DoRA's adapters: peft takes
    them as matrices by `view`."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    named = dict(network.named_parameters())
    if any(f"{MARK}magnitude" in name for name in named):
        for name in named:
            if MARK in name:
                named[name].data = named[name].data.contiguous()


def merged(network: nn.Module) -> nn.Module:
    """Returns the network with its adapters added to the weights they belong to: a copy with the names and
    the computation of the network without adapters. One without any is returned as it is."""
    if not any(MARK in name for name, _ in network.named_parameters()):
        return network
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    return plain
