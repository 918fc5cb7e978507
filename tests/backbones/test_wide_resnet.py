"""Wide ResNet: its size as published, and what it refuses."""

import pytest
from support.networks import built, check_first_logits, check_logits_and_head, parameters

from imgcls.errors import UserError

WIDE = "imgcls.backbones.wide_resnet.wide_resnet"


def test_it_is_as_large_as_published() -> None:
    assert parameters(built(WIDE, depth=28, widen=10)) / 1e6 == pytest.approx(36.5, abs=0.05)
    assert parameters(built(WIDE, depth=16, widen=8)) / 1e6 == pytest.approx(11.0, abs=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_and_head(channels: int) -> None:
    check_logits_and_head(WIDE, 32, channels, depth=16, widen=1)


def test_first_logits() -> None:
    check_first_logits(WIDE, depth=16, widen=2)


@pytest.mark.parametrize(("depth", "message"), [(20, r"expected 6n\+4, such as 16"), (4, r"expected 6n\+4")])
def test_wrong_depth(depth: int, message: str) -> None:
    with pytest.raises(UserError, match=rf"backbone\.depth={depth}: {message}"):
        built(WIDE, depth=depth)
