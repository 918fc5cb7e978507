"""Calls within calls: checked like any other, and made by Hydra."""

import datetime
import functools
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn
from torchmetrics import MetricCollection
from torchvision.transforms import v2

from imgcls.config.build import build, recipe
from imgcls.config.check import check, locate
from imgcls.errors import UserError

V2 = "torchvision.transforms.v2."
CROP = {"_target_": V2 + "RandomCrop", "size": [4, 6]}


def compose(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": V2 + "Compose", "transforms": list(transforms)}


class Keeper:
    """Keeps what it is made of."""

    def __init__(self, inner: Any = None, rate: float = 1.0, shape: tuple[int, int] = (1, 1)) -> None:
        if rate > 9:
            raise ValueError("a rate of more than\nnine")
        if rate > 8:
            raise KeyError("gone")
        self.inner, self.rate, self.shape = inner, rate, shape


KEEPER = f"{__name__}.Keeper"


def test_in_lists_dicts_and_one_another() -> None:
    made = build(compose(CROP, compose({"_target_": V2 + "RandomApply", "transforms": [CROP]})), "policy")
    assert isinstance(made, v2.Compose) and isinstance(made.transforms[1], v2.Compose)
    assert isinstance(made.transforms[1].transforms[0], v2.RandomApply)
    crop = made.transforms[0]
    assert isinstance(crop, v2.RandomCrop) and crop.size == [4, 6] and type(crop.size) is list
    kept = build({"_target_": KEEPER, "inner": {"a": {"b": CROP}, "c": [1, {"d": 2}]}}, "x")
    assert type(kept.inner) is dict and isinstance(kept.inner["a"]["b"], v2.RandomCrop)
    assert kept.inner["c"] == [1, {"d": 2}] and type(kept.inner["c"][1]) is dict


def test_a_callback_with_an_object() -> None:
    duration = {"_target_": "datetime.timedelta", "hours": 2}
    node = {"_target_": "lightning.pytorch.callbacks.Timer", "duration": duration}
    assert build(node, "callbacks.timer", Timer)._duration == datetime.timedelta(hours=2).total_seconds()


def test_partial_and_positional() -> None:
    layer = {"_target_": "torch.nn.Linear", "_partial_": True, "out_features": 3}
    kept = build({"_target_": KEEPER, "_args_": [layer], "shape": [2, 3]}, "x")
    assert isinstance(kept.inner(5), nn.Linear) and kept.shape == (2, 3)
    layers = [{"_target_": "torch.nn.Linear", "_args_": [2, 3]}, {"_target_": "torch.nn.ReLU"}]
    net = build({"_target_": "torch.nn.Sequential", "_args_": layers}, "net")
    assert net(torch.zeros(1, 2)).shape == (1, 3)


@pytest.mark.parametrize("partial", [True, False])
def test_a_part_is_called_whether_it_says_partial_or_not(partial: bool) -> None:
    node = {"_target_": "torch.optim.SGD", "lr": 0.1, "_partial_": partial}
    call = recipe(node, "optimizer")
    assert isinstance(call, functools.partial) and call.keywords == {"lr": 0.1}
    assert build(node, "optimizer", params=[torch.zeros(1)]).defaults["lr"] == 0.1
    check({"optimizer": node})


def test_what_hydra_gets_for_objects_without_a_call() -> None:
    """`hydra.utils.get_object` is how YAML names a constant."""
    dtype = {"_target_": "hydra.utils.get_object", "path": "torch.float32"}
    made = build(compose({"_target_": V2 + "ToDtype", "dtype": dtype, "scale": True}), "policy")
    assert made(torch.full((3, 2, 2), 255, dtype=torch.uint8)).max() == 1


def test_values_within_are_converted_as_the_types_say() -> None:
    kept = build({"_target_": KEEPER, "inner": {"_target_": KEEPER, "rate": 3}}, "x")
    assert type(kept.inner.rate) is float


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (compose({**CROP, "sise": 1}), f"x.transforms.0.sise: {V2}RandomCrop takes no 'sise'; "),
        (compose(CROP, {**CROP, "padding": "a"}), "x.transforms.1.padding=a: "),
        (compose({"_target_": V2 + "RandomCropp"}), f"x.transforms.0._target_={V2}RandomCropp: no "),
        ({"_target_": KEEPER, "inner": {"a": {"_target_": KEEPER, "rate": "b"}}}, "x.inner.a.rate=b: "),
        ({"_target_": KEEPER, "_args_": [1, "b"]}, "x._args_.1=b: "),
        ({"_target_": KEEPER, "_args_": "b"}, "x._args_=b: expected a list"),
        ({"_target_": KEEPER, "_args_": [{"_target_": KEEPER, "_args_": [0, "b"]}]}, "x._args_.0._args_.1=b"),
    ],
)
def test_what_does_not_fit_has_its_place(node: dict[str, Any], message: str) -> None:
    for function in (build, check):
        with pytest.raises(UserError) as caught:
            function(node, "x")
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"_target_": V2 + "RandomCrop"}, f"x.inner.1: {V2}RandomCrop can't be called so: missing"),
        ({"_target_": KEEPER, "_args_": [1], "inner": 2}, f"x.inner.1: {KEEPER} can't be called so: mult"),
        ({"_target_": KEEPER, "rate": 10}, "x.inner.1: a rate of more than nine"),
        ({"_target_": KEEPER, "rate": 8.5}, f"x.inner.1._target_={KEEPER}: KeyError: 'gone'; the trace"),
        ({"_target_": KEEPER, "inner": "${oc.env:HOME}"}, "x.inner.1.inner=${oc.env:HOME}: a text with ${"),
    ],
)
def test_what_fails_when_it_is_built_has_its_place(inner: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build({"_target_": KEEPER, "inner": [CROP, inner]}, "x")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_text_of_a_call_itself_stays_as_it_is() -> None:
    assert build({"_target_": KEEPER, "inner": "${oc.env:HOME} ???"}, "x").inner == "${oc.env:HOME} ???"


def test_too_many_positional_arguments() -> None:
    with pytest.raises(UserError, match=r"^x: torch.nn.ReLU can't be called so: too many positional"):
        build({"_target_": "torch.nn.ReLU", "_args_": [True, 1]}, "x")


# What a checkpoint names


def test_a_found_target_has_no_calls_within() -> None:
    for inner in (CROP, [CROP], {"a": [{"b": CROP}]}, [{**CROP, "_partial_": True}], (CROP,)):
        for place in ("inner", "_args_"):
            node = {"_target_": KEEPER, place: inner if place == "inner" else [inner]}
            with pytest.raises(UserError, match="a checkpoint may name no calls within another"):
                build(node, "the checkpoint's part", target=Keeper)
    assert build({"_target_": KEEPER, "_args_": [3]}, "x", target=Keeper).inner == 3


def test_find_decides_of_all_calls() -> None:
    asked = []

    def find(name: str) -> Any:
        asked.append(name)
        if not name.startswith("torchmetrics."):
            raise UserError(f"{name} is not allowed")
        return locate(name)

    f1 = {"_target_": "torchmetrics.classification.MulticlassF1Score", "num_classes": 3}
    collection = {"_target_": "torchmetrics.MetricCollection", "metrics": {"one": f1, "two": f1}}
    assert isinstance(build(collection, "metrics.mine", find=find), MetricCollection)
    assert set(asked) == {collection["_target_"], f1["_target_"]}
    bad = {"_target_": "os.mkdir", "path": "it_ran"}
    nested = [{**f1, "average": [bad]}, {"_target_": f1["_target_"], "_args_": [bad]}]
    for inner in (bad, {**bad, "_partial_": True}, *nested):
        with pytest.raises(UserError, match="os.mkdir is not allowed"):
            build({**collection, "metrics": [f1, inner]}, "metrics.mine", find=find)
