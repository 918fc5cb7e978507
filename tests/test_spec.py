"""Sizes: squares and rectangles, from configs, checkpoints and manifests."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from imgcls.config.check import typed
from imgcls.errors import UserError
from imgcls.spec import DataSpec, as_word, checked_size, sides

FACTS: dict[str, Any] = {"class_names": ("a", "b"), "channels": 3, "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    ("given", "kept"), [(32, 32), ([32, 32], 32), ([16, 40], (16, 40)), ((16, 40), (16, 40))]
)
def test_a_size_is_a_number_or_two(given: Any, kept: Any) -> None:
    spec = DataSpec(**FACTS, image_size=given)
    assert spec.image_size == kept and spec.size == sides(kept)
    again = typed(json.loads(json.dumps(asdict(spec))), DataSpec, "spec")  # as a manifest has it
    assert again == spec and again.image_size == kept


@pytest.mark.parametrize("given", [0, True, 8.5, "8", [8], [8, 0], [8, 8, 8], None])
def test_what_is_no_size(given: Any) -> None:
    with pytest.raises(ValueError, match=r"expected 1 pixel or more, or \[height,width\]"):
        checked_size(given)


def test_a_spec_of_before_there_were_rectangles() -> None:
    """As an old checkpoint or manifest has it: a number, and no train_size."""
    old = {k: v for k, v in asdict(DataSpec(**FACTS, image_size=24)).items() if k != "train_size"}
    spec = typed(old, DataSpec, "spec")
    assert (spec.size, spec.train_size, spec.for_training) == ((24, 24), None, spec)


def test_resize_of_both_sides() -> None:
    spec = DataSpec(**FACTS, image_size=(35, 70), crop_ratio=0.875)
    assert spec.resize == (40, 80) and as_word(spec.image_size) == "[35,70]"
    assert DataSpec(**FACTS, image_size=224, crop_ratio=0.875).resize == (256, 256)


def test_the_size_in_training() -> None:
    spec = DataSpec(**FACTS, image_size=24, train_size=(16, 20))
    assert spec.for_training.size == (16, 20) and spec.for_training.train_size is None
    assert DataSpec(**FACTS, image_size=24, train_size=24).train_size is None  # no other


def test_at_most() -> None:
    assert DataSpec(**FACTS, image_size=(100, 50)).at_most(20).size == (40, 20)
    assert DataSpec(**FACTS, image_size=24).at_most(32).image_size == 24


def test_too_large_is_refused() -> None:
    for sizes in ({"image_size": [8, 2**15]}, {"image_size": 8, "train_size": 2**15}):
        with pytest.raises(UserError, match="at most 16384 pixels"):
            DataSpec(**FACTS, **sizes)


@pytest.mark.parametrize("key", ["image_size", "train_size"])
def test_wrong_sizes_on_the_command_line(said: Callable[..., str], key: str) -> None:
    assert said("train", f"data.{key}=[8]").endswith(
        f"data.{key}=[8]: expected 1 pixel or more, or [height,width]"
    )


def test_many_classes_take_no_time() -> None:
    """A checkpoint may name as many as it likes; ImageNet-21k has 21,841."""
    start = time.perf_counter()
    with pytest.raises(UserError, match="two classes called '7'"):
        DataSpec(**FACTS | {"class_names": [*map(str, range(20_000)), "7"]}, image_size=8)
    assert time.perf_counter() - start < 0.5
