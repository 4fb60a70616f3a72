"""The guard's verdicts, against a plain re-statement of what it is to do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainer.distributed.update import answered_by_scaler, update
from trainer.finite import BadStep, FiniteGuard

NAN = math.nan
CPU = torch.device("cpu")
STREAM = [(1.0, 2.0), (NAN, 2.0), (1.0, math.inf), (1.0, 2.0), (NAN, NAN)]
BAD = [1, 2, 4]


def judged(guard: FiniteGuard) -> list[float]:
    return [float(guard.check(torch.tensor(loss), torch.tensor(norm), n)) for n, (loss, norm) in enumerate(STREAM)]


def test_a_lasting_verdict_blocks_all_that_follows_and_names_the_first() -> None:
    guard = FiniteGuard(nn.BatchNorm2d(1), CPU, lasting=True, room=1)
    assert judged(guard) == [0, 1, 1, 1, 1]
    [bad] = guard.take()
    assert (bad.number, bad.what, bad.gradient_norm) == (2, "the loss", 2.0)
    assert [again.step for again in guard.take()] == [1]
    guard.forget()
    assert guard.take() == []
    assert float(guard.check(torch.tensor(1.0), torch.tensor(1.0), 9)) == 0


def test_otherwise_each_step_is_judged_by_itself() -> None:
    guard = FiniteGuard(nn.BatchNorm2d(1), CPU, lasting=False, room=5)
    assert judged(guard) == [float(n in BAD) for n in range(5)]
    assert [bad.step for bad in guard.take()] == BAD
    assert guard.take() == []


def test_more_bad_steps_than_there_is_room_for_are_still_a_full_room() -> None:
    guard = FiniteGuard(nn.BatchNorm2d(1), CPU, lasting=False, room=2)
    judged(guard)
    assert [bad.step for bad in guard.take()] == BAD[:2]


def test_statistics_of_a_bad_step_are_taken_back() -> None:
    norm = nn.BatchNorm2d(2)
    guard = FiniteGuard(norm, CPU, lasting=False, room=1)
    good = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    guard.begin()
    norm(good)
    guard.check(torch.tensor(1.0), torch.tensor(1.0), 0)
    expected = nn.BatchNorm2d(2)
    expected(good)
    guard.begin()
    norm(good * NAN)
    assert norm.running_mean is not None
    assert norm.running_mean.isnan().all()
    guard.check(torch.tensor(NAN), torch.tensor(1.0), 1)
    for name, value in expected.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name


def test_a_step_and_what_is_wrong_with_it() -> None:
    assert BadStep(4, 1.0, math.inf).what == "the gradient"
    assert BadStep(4, 1.0, math.inf).number == 5


@pytest.mark.parametrize(("scale", "alarm"), [(65536.0, False), (1.0, False), (0.5, True)])
def test_an_overflow_is_the_scalers_business_as_long_as_it_can_back_off(scale: float, alarm: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(()))
    assert bool(answered_by_scaler(torch.tensor(math.inf), scaler).isfinite()) is not alarm


def test_a_blocked_step_of_fp16_can_be_followed_by_a_good_one() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for blocked, value in ((1.0, 1.0), (0.0, 0.0)):
        optimizer.zero_grad()
        scaler.scale(weight.sum()).backward()
        scaler.unscale_(optimizer)
        update(optimizer, optimizer, scaler, lr=1.0, blocked=torch.tensor(blocked))
        assert weight.tolist() == [value] * 3
