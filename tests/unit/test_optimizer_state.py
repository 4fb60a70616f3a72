"""Optimizer state from another device: fused kernels are a choice of this life, not of what it loads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer.distributed.ddp import DdpEngine

CPU = torch.device("cpu")
MAKE = {
    "sgd": lambda parameters, fused: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, fused=fused),
    "adam": lambda parameters, fused: torch.optim.Adam(parameters, lr=0.1, fused=fused),
}
GRADIENTS = torch.tensor([[0.5, -1.0], [2.0, 0.25]])


def engine_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> DdpEngine:
    return DdpEngine(model, optimizer, precision="fp32", clip_norm=None, compile=False, device=CPU)


def step(engine: DdpEngine, row: torch.Tensor, *, blocked: float = 0.0) -> None:
    engine.module.weight.grad = row.reshape(1, 2).clone()
    engine.step(lr=0.1, blocked=torch.tensor(blocked))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize(("saved", "loaded"), [(None, True), (True, None)])
def test_a_state_goes_on_under_other_kernels(name: str, saved: bool | None, loaded: bool | None) -> None:
    """A step that is blocked, then one that is not, against torch alone; fused kernels must be told of the first."""
    weight = torch.tensor([[1.0, -2.0]])
    models = [nn.Linear(2, 1, bias=False) for _ in range(3)]
    for model in models:
        model.weight.data = weight.clone()
    before = engine_of(models[0], MAKE[name](models[0].parameters(), saved))
    step(before, GRADIENTS[0])
    models[1].load_state_dict(models[0].state_dict())
    after = engine_of(models[1], MAKE[name](models[1].parameters(), loaded))
    state = copy.deepcopy(before.state())
    after.load_state(state)
    assert state["optimizer"]["param_groups"][0]["fused"] == saved, "the state is the caller's"
    step(after, torch.full((2,), torch.nan), blocked=1.0)
    assert torch.equal(models[1].weight, models[0].weight)
    step(after, GRADIENTS[1])

    plain = MAKE[name](models[2].parameters(), None)
    for row in GRADIENTS:
        models[2].weight.grad = row.reshape(1, 2).clone()
        plain.step()
    torch.testing.assert_close(models[1].weight, models[2].weight)
