"""The small networks of our own: sizes as published, shapes, and what they refuse."""

import pytest
from support.networks import built, check_first_logits, check_logits_and_head, parameters
from torch import nn

from imgcls.errors import UserError

OWN = "imgcls.backbones"
CIFAR = f"{OWN}.resnet_cifar.resnet_cifar"
CNN = f"{OWN}.simple_cnn.simple_cnn"


@pytest.mark.parametrize(
    (
        "depth",
        "millions",
        "exact",
    ),  # He et al. 2015, table 6; exact as in github.com/akamaster/pytorch_resnet_cifar10
    [
        (20, 0.27, 269_722),
        (32, 0.46, 464_154),
        (44, 0.66, 658_586),
        (56, 0.85, 853_018),
        (110, 1.7, 1_727_962),
    ],
)
def test_resnet_cifar_is_as_large_as_published(depth: int, millions: float, exact: int) -> None:
    network = built(CIFAR, depth=depth)
    assert parameters(network) == exact
    assert exact / 1e6 == pytest.approx(millions, abs=0.03)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_simple_cnn_size() -> None:
    convolutions = 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    norms = 2 * 2 * (32 + 64 + 128)
    assert parameters(built(CNN, width=32)) == convolutions + norms + 128 * 10 + 10
    assert built(CNN, dropout=0.3).get_submodule("pool.2").p == 0.3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("target", "size"), [(CIFAR, 32), (CIFAR, 8), (CNN, 8)])
def test_logits_and_head(target: str, size: int, channels: int) -> None:
    check_logits_and_head(target, size, channels)


@pytest.mark.parametrize("target", [CIFAR, CNN])
def test_first_logits(target: str) -> None:
    check_first_logits(target)


@pytest.mark.parametrize(("depth", "message"), [(18, r"expected 6n\+2, such as 20"), (2, r"expected 6n\+2")])
def test_wrong_depth(depth: int, message: str) -> None:
    with pytest.raises(UserError, match=rf"backbone\.depth={depth}: {message}"):
        built(CIFAR, depth=depth)


def test_unknown_key() -> None:
    with pytest.raises(UserError, match=r"backbone\.deph: .* did you mean 'depth'"):
        built(CIFAR, deph=20)
