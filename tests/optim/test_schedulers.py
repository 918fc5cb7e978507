"""Schedules as the rates that they give, step by step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from imgcls.config.build import build
from imgcls.errors import UserError
from imgcls.optim import (
    Schedule,
    Steps,
    build_schedule,
    constant,
    cosine,
    linear,
    multi_step,
    one_cycle,
    plateau,
    wsd,
)

RATE = 0.5


def sgd(momentum: float = 0.9) -> SGD:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.zeros(2))]}]
    return SGD(groups, lr=RATE, momentum=momentum)


def rates(schedule: Schedule, optimizer: Optimizer, count: int) -> list[float]:
    """Returns the rate of each of `count` steps, and the one after them."""
    assert [entry["interval"] for entry in schedule] == ["step"]
    seen = []
    for _ in range(count):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule[0]["scheduler"].step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_cosine() -> None:
    optimizer = sgd()
    seen = rates(cosine(optimizer, Steps(10, 40), final=0.1), optimizer, 40)
    assert seen[0] == RATE
    assert seen[20] == pytest.approx(RATE * 0.55)
    assert seen[10] == pytest.approx(RATE * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert seen[40] == pytest.approx(RATE * 0.1)
    assert seen == sorted(seen, reverse=True)


def test_cosine_stays_at_its_end() -> None:
    optimizer = sgd()
    assert rates(cosine(optimizer, Steps(10, 20)), optimizer, 25)[20:] == pytest.approx([0.0] * 6)


def by_epoch(scheduler: LRScheduler, epochs: int, per_epoch: int) -> list[float]:
    """The rate of each step with a scheduler that goes on once an epoch, as those of others do."""
    seen = []
    for _ in range(epochs):
        seen += [float(scheduler.optimizer.param_groups[0]["lr"])] * per_epoch
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def test_a_staircase_is_torchvisions() -> None:
    """SequentialLR of LinearLR and CosineAnnealingLR, as references/classification/train.py has them."""
    theirs = sgd()
    parts: list[LRScheduler] = [LinearLR(theirs, 0.01, total_iters=5), CosineAnnealingLR(theirs, 25)]
    expected = by_epoch(SequentialLR(theirs, parts, milestones=[5]), 30, 4)
    ours = sgd()
    schedule = cosine(ours, Steps(4, 120), 5.0, warmup_start=0.01, staircase=True)
    assert rates(schedule, ours, 120)[:120] == pytest.approx(expected)


def test_the_whole_cosine_is_timms() -> None:
    """timm's CosineLRScheduler by epochs, as DeiT and ResNet strikes back were trained."""
    theirs = sgd()
    cosines = CosineLRScheduler(theirs, 30, lr_min=1e-5 * RATE, warmup_t=5, warmup_lr_init=1e-6 * RATE)
    expected = []
    for epoch in range(30):
        expected += [theirs.param_groups[0]["lr"]] * 4
        cosines.step(epoch + 1)
    ours = sgd()
    options: dict[str, Any] = {"warmup_start": 1e-6, "staircase": True, "whole": True}
    schedule = cosine(ours, Steps(4, 120), 5.0, 1e-5, **options)
    assert rates(schedule, ours, 120)[:120] == pytest.approx(expected)


def test_milestones_in_epochs_are_those_of_torch(caplog: pytest.LogCaptureFixture) -> None:
    theirs = sgd()
    expected = by_epoch(MultiStepLR(theirs, [3, 5]), 8, 4)
    ours = sgd()
    assert rates(multi_step(ours, Steps(4, 32), [3, 5]), ours, 32)[:32] == pytest.approx(expected)
    assert not caplog.messages
    multi_step(ours, Steps(4, 16), [3, 5])
    assert caplog.messages == ["scheduler.milestones: [5] lie beyond the end of the training"]


def test_a_line_and_a_late_fall() -> None:
    ours = sgd()
    seen = rates(linear(ours, Steps(10, 40), warmup_steps=10, warmup_start=0.0), ours, 40)
    assert seen == pytest.approx(
        [RATE * i / 10 for i in range(10)] + [RATE * i / 30 for i in range(30, -1, -1)]
    )
    ours = sgd()
    seen = rates(wsd(ours, Steps(10, 40), decay=0.25), ours, 40)
    assert seen == pytest.approx([RATE] * 30 + [RATE * (1 - math.sqrt(i / 10)) for i in range(11)])


def test_a_group_that_learns_for_some_epochs() -> None:
    optimizer = sgd()
    optimizer.param_groups[0]["epochs"] = 3
    schedule = linear(optimizer, Steps(2, 16))
    seen = []
    for _ in range(16):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule[0]["scheduler"].step()
    assert [first for first, _ in seen] == pytest.approx([RATE * max(1 - i / 6, 0) for i in range(16)])
    assert [second for _, second in seen] == pytest.approx([RATE * (1 - i / 16) for i in range(16)])


@pytest.mark.parametrize("name", ["one_cycle", "plateau"])
def test_a_schedule_that_knows_no_end_of_a_group(name: str) -> None:
    optimizer = sgd()
    optimizer.param_groups[0]["epochs"] = 3
    with pytest.raises(UserError, match="does not know when a group of parameters ends; leave out epochs"):
        build_schedule({"_target_": f"imgcls.optim.{name}"}, optimizer, Steps(2, 16))


def test_warmup_steps_beyond_the_training(caplog: pytest.LogCaptureFixture) -> None:
    ours = sgd()
    seen = rates(cosine(ours, Steps(10, 40), warmup_steps=10_000), ours, 40)
    assert max(seen) == seen[4] == RATE
    assert caplog.messages[0].startswith("scheduler.warmup_steps=10000 is as long as the training")


SHAPES: list[Callable[..., Schedule]] = [
    cosine,
    constant,
    lambda optimizer, steps, **options: multi_step(optimizer, steps, milestones=[0.9], **options),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("epochs", "warmup"), [(1.0, 10), (0.5, 5), (2, 20), (0.0, 0)])
def test_warm_up_is_a_line(shape: Callable[..., Schedule], epochs: float, warmup: int) -> None:
    optimizer = sgd()
    seen = rates(shape(optimizer, Steps(10, 40), warmup_epochs=epochs), optimizer, 40)
    assert seen[:warmup] == pytest.approx([RATE * (i + 1) / (warmup + 1) for i in range(warmup)])
    assert seen[warmup] == pytest.approx(RATE)
    assert max(seen) == pytest.approx(RATE)


def test_cosine_after_warm_up_ends_at_the_end() -> None:
    optimizer = sgd()
    seen = rates(cosine(optimizer, Steps(10, 40), warmup_epochs=1.0), optimizer, 40)
    assert seen[25] == pytest.approx(RATE / 2)
    assert seen[39] > 0
    assert seen[40] == pytest.approx(0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("total", "warmup"), [(40, 4), (25, 2), (5, 0)])
def test_a_warm_up_as_long_as_the_training_is_shortened(
    shape: Callable[..., Schedule], total: int, warmup: int, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = sgd()
    seen = rates(shape(optimizer, Steps(40, total), warmup_epochs=1.0), optimizer, total)
    assert seen[: warmup + 1] == pytest.approx([RATE * (i + 1) / (warmup + 1) for i in range(warmup + 1)])
    assert f"shortened to {warmup} of its {total} steps" in caplog.text


def test_a_shorter_warm_up_stays(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = sgd()
    seen = rates(cosine(optimizer, Steps(39, 40), warmup_epochs=1.0), optimizer, 40)
    assert seen[39] == pytest.approx(RATE) and not caplog.text


def test_constant() -> None:
    optimizer = sgd()
    assert rates(constant(optimizer, Steps(10, None)), optimizer, 30) == [RATE] * 31


def test_multi_step() -> None:
    optimizer = sgd()
    seen = rates(multi_step(optimizer, Steps(7, 21), milestones=[0.5, 0.75], gamma=0.1), optimizer, 21)
    assert seen == pytest.approx([RATE] * 11 + [RATE * 0.1] * 5 + [RATE * 0.01] * 6)  # places 10.5 and 15.75


def test_one_cycle() -> None:
    optimizer = sgd()
    schedule = one_cycle(optimizer, Steps(10, 40), pct_start=0.25, div_factor=10.0, final_div_factor=100.0)
    seen = rates(schedule, optimizer, 40)  # torch raises where it is asked for one more
    assert seen[0] == pytest.approx(RATE / 10)
    assert max(seen) == pytest.approx(RATE, rel=0.01)
    assert abs(seen.index(max(seen)) - 10) <= 1
    assert seen[40] == pytest.approx(RATE / 1000)
    assert seen[:10] == sorted(seen[:10])
    assert seen[10:] == sorted(seen[10:], reverse=True)


def test_one_cycle_moves_momentum_the_other_way() -> None:
    optimizer = sgd()
    schedule = one_cycle(optimizer, Steps(10, 40), pct_start=0.25)
    assert optimizer.param_groups[1]["momentum"] == pytest.approx(0.95)
    rates(schedule, optimizer, 10)
    assert optimizer.param_groups[1]["momentum"] == pytest.approx(0.85, abs=0.003)
    adam = AdamW([nn.Parameter(torch.zeros(2))], lr=RATE)
    one_cycle(adam, Steps(10, 40))
    assert adam.param_groups[0]["betas"] == (pytest.approx(0.95), 0.999)


@pytest.mark.parametrize("given", [False, True])
def test_one_cycle_without_momentum(given: bool) -> None:
    if given:
        optimizer: Optimizer = sgd()
        one_cycle(optimizer, Steps(10, 40), cycle_momentum=False)
        assert optimizer.param_groups[0]["momentum"] == 0.9
    else:
        optimizer = torch.optim.Adagrad([nn.Parameter(torch.zeros(2))], lr=RATE)
        assert rates(one_cycle(optimizer, Steps(10, 40)), optimizer, 40)[40] < RATE / 1000


def test_plateau() -> None:
    optimizer = sgd()
    (entry,) = plateau(optimizer, Steps(10, None), monitor="val/top1", mode="max", factor=0.5, patience=1)
    assert (entry["interval"], entry["monitor"]) == ("epoch", "val/top1")
    seen = []
    for value in (0.5, 0.6, 0.6, 0.6, 0.7, 0.1, 0.1):
        entry["scheduler"].step(value)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([RATE, RATE, RATE, RATE / 2, RATE / 2, RATE / 2, RATE / 4])


def test_plateau_after_warm_up() -> None:
    optimizer = sgd()
    reduce, warm = plateau(optimizer, Steps(4, None), patience=0, factor=0.1, warmup_epochs=1.0)
    seen = []
    for step in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warm["scheduler"].step()
        if step % 4 == 3:
            reduce["scheduler"].step({3: 1.0, 7: 2.0, 11: 3.0}[step])
    assert seen == pytest.approx([RATE * i / 5 for i in (1, 2, 3, 4)] + [RATE] * 4 + [RATE * 0.1] * 4)


@pytest.mark.parametrize(
    "build", [cosine, one_cycle, lambda optimizer, steps: multi_step(optimizer, steps, milestones=[0.5])]
)
def test_a_shape_with_an_end_needs_one(build: Callable[[Optimizer, Steps], Schedule]) -> None:
    with pytest.raises(UserError, match=r"needs an end: set trainer\.max_epochs or trainer\.max_steps"):
        build(sgd(), Steps(10, None))


@pytest.mark.parametrize(
    "options",
    [
        {"_target_": "cosine", "warmup_epochs": "long"}, {"_target_": "cosine", "warmup": 1.0},
        {"_target_": "cosine", "warmup_epochs": -1.0}, {"_target_": "cosine", "final": -0.1},
        {"_target_": "constant", "warmup_epochs": -1.0}, {"_target_": "plateau", "warmup_epochs": -1.0},
        {"_target_": "multi_step", "milestones": [0.5], "gamma": -0.1},
        {"_target_": "multi_step", "milestones": [0.5], "warmup_epochs": -0.1},
        {"_target_": "multi_step", "milestones": [0.5, 1.5]},
        {"_target_": "multi_step", "milestones": [-0.1]},
        {"_target_": "linear", "warmup_start": 1.5}, {"_target_": "wsd", "form": "square"},
        {"_target_": "one_cycle", "div_factor": 0.0}, {"_target_": "one_cycle", "final_div_factor": 0.0},
        {"_target_": "one_cycle", "pct_start": 2.0}, {"_target_": "plateau", "factor": -0.1},
        {"_target_": "plateau", "factor": 2.0},
        {"_target_": "plateau", "mode": "up"},
    ],
)  # fmt: skip
def test_wrong_options(options: dict[str, Any]) -> None:
    options = options | {"_target_": f"imgcls.optim.{options['_target_']}"}
    with pytest.raises(UserError, match=rf"scheduler\.{list(options)[-1]}"):
        build(options, "scheduler", optimizer=sgd(), steps=Steps(10, 40))
