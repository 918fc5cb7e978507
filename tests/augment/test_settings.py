"""Settings of augmentation: wrong ones are refused in one line."""

from typing import Any

import pytest

from imgcls.augment.settings import Augment
from imgcls.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, "augment.flip=1.5: "),
        ({"erase": -0.1}, "augment.erase=-0.1: "),
        ({"padding": 2.0}, "augment.padding=2.0: "),
        (
            {"mixup": {"probability": 0.6}, "cutmix": {"probability": 0.6}},
            "augment.mixup.probability + cutmix.probability=1.2",
        ),
        (
            {"mixup": {"probability": -0.5}, "cutmix": {"probability": 0.6}},
            "augment.mixup.probability=-0.5: ",
        ),
        ({"cutmix": {"probability": 1.5}}, "augment.cutmix.probability=1.5: "),
        ({"mixup": {"alpha": -1.0}}, "augment.mixup.alpha=-1.0: "),
        ({"cutmix": {"alpha": 0.0}}, "augment.cutmix.alpha=0.0: "),
        ({"scale": [0.0, 0.0]}, "augment.scale="),
        ({"scale": [1.0, 0.5]}, "augment.scale=[1.0, 0.5]: "),
        ({"scale": [-0.1, 0.5]}, "augment.scale="),
        ({"scale": [0.1, 1.5]}, "augment.scale="),
        ({"ratio": [2.0, 0.5]}, "augment.ratio=[2.0, 0.5]: "),
        ({"ratio": [0.0, 0.5]}, "augment.ratio="),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Augment.read(settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("key", ["policy", "mixin"])
def test_a_key_that_is_not_there(key: str) -> None:
    expected = {"policy": "augment.policy: there is no such key; write augment.image.policy=…"}
    with pytest.raises(UserError) as caught:
        Augment.read({key: None})
    assert str(caught.value).startswith(expected.get(key, "augment.mixin="))
