"""Gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from models.recompute import recompute


@pytest.mark.parametrize("name", ["resnet20_1w1a", "resnet20_bireal_1w1a", "vgg_small_1w1a"])
def test_checkpointing_changes_no_gradient_and_no_statistic(name):
    torch.manual_seed(0)
    plain = timm.create_model(name)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32)
    for model in (plain, saving):
        model(x).square().sum().backward()
    for (path, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), path
    for (path, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), path


def test_checkpointing_runs_a_block_twice_and_can_be_switched_off():
    model = timm.create_model("resnet20_1w1a")
    calls = []
    model.layer1[1].conv1.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 16, 16)
    for enable, expected in ((True, 2), (False, 1)):
        calls.clear()
        model.set_grad_checkpointing(enable)
        model(x).sum().backward()
        assert len(calls) == expected


def test_batch_norms_go_on_as_before_after_the_backward_pass():
    norm = nn.BatchNorm2d(3, momentum=0.3)
    cumulative = nn.BatchNorm2d(3, momentum=None)
    fixed = nn.BatchNorm2d(3, track_running_stats=False)
    all_three = nn.Sequential(norm, cumulative, fixed)
    recompute(all_three, torch.randn(4, 3, 2, 2, requires_grad=True), owner=all_three).sum().backward()
    assert (norm.momentum, cumulative.momentum) == (0.3, None)
    assert norm.num_batches_tracked.item() == cumulative.num_batches_tracked.item() == 1


def test_batch_norms_go_on_as_before_after_a_failed_recomputation():
    class FailsTheSecondTime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls = nn.BatchNorm2d(3), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("second pass")
            return self.norm(x)

    module = FailsTheSecondTime()
    y = recompute(module, torch.randn(4, 3, 2, 2, requires_grad=True), owner=module)
    with pytest.raises(RuntimeError, match="second pass"):
        y.sum().backward()
    assert module.norm.momentum == 0.1
