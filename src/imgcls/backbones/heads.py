"""The heads of a network: the layers that give the logits."""

from torch import nn


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Returns the names of a network's heads, the main one first; none where the network says none."""
    return tuple(getattr(network, "head_names", ()))


def reset_head(network: nn.Module) -> None:
    """Starts the heads at zero (Kolesnikov et al. 2019, BiT).

    The first loss is then the logarithm of the number of classes at any scale of the features, and trained
    weights below the head get no gradients of random logits. A head that is a convolution keeps its weights:
    SqueezeNet's goes into a ReLU, which has no gradient at 0.
    """
    for name in head_names(network):
        head = network.get_submodule(name)
        for parameter in head.parameters() if isinstance(head, nn.Linear) else ():
            nn.init.zeros_(parameter)
