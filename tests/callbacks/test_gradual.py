"""Layers that begin to learn beside others that have learnt for a while."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from imgcls.optim import give_momentum


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_fused_step_with_a_parameter_that_begins_late(nesterov: bool) -> None:
    """It is the step that torch's plain loop takes, which begins with no momentum."""
    ends = []
    for fused in (True, False):
        first, late = (nn.Parameter(torch.ones(3)) for _ in range(2))
        late.requires_grad_(False)
        optimizer = torch.optim.SGD(
            [first, late], lr=0.1, momentum=0.9, nesterov=nesterov, fused=fused, foreach=False
        )
        for step in range(4):
            late.requires_grad_(step > 1)
            give_momentum(optimizer)
            optimizer.zero_grad()
            ((first**2).sum() + (late**2 if step > 1 else late.detach()).sum()).backward()
            optimizer.step()
        ends.append(torch.cat([first, late]).detach())
    torch.testing.assert_close(*ends)


def test_nothing_is_given_to_what_does_not_learn() -> None:
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    parameters[1].requires_grad_(False)
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)
    give_momentum(optimizer)
    assert not optimizer.state
    parameters[0].sum().backward()
    optimizer.step()
    give_momentum(optimizer)
    assert list(optimizer.state) == [parameters[0]]


def test_sgd_layer_by_layer(here: Callable[..., None]) -> None:
    """Norms of two layers are in one group, and the second of them begins two epochs after the first."""
    limits = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.max_epochs=6")
    here("train", "finetune=gradual", "optimizer=sgd", "logger=csv", "test=false", *limits)
