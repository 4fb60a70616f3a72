"""Synchronised batch norm on a GPU against torch's own batch norm: a group of one rank is that rank's batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.distributed.batchnorm import convert_batchnorm
from trainer.distributed.statistics import BatchNormGroup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


@pytest.fixture(scope="module")
def alone() -> Iterator[BatchNormGroup]:
    """This process as the only rank of an NCCL group."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    assert dist.group.WORLD is not None
    yield BatchNormGroup(dist.group.WORLD.group_name, 1)
    dist.destroy_process_group()


def passed(norm: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, gradients and statistics after one forward and backward pass."""
    x = x.detach().requires_grad_()
    y = norm(x)
    y.backward(gradient)
    buffers = [buffer for buffer in norm.buffers() if buffer.is_floating_point()]
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters()), *buffers]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_group_of_one_is_torchs_batch_norm(
    alone: BatchNormGroup, layout: str, dtype: torch.dtype, compiled: bool
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x, gradient = torch.randn(2, 16, 8, 6, 6, device="cuda", dtype=torch.float64, generator=generator)
    x, gradient = ((t + 3).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x, gradient))
    plain = nn.BatchNorm2d(8, device="cuda", dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(0.5, 2, 8))
        plain.bias.copy_(torch.linspace(-1, 1, 8))
    shared = convert_batchnorm(nn.Sequential(plain), alone)
    torch.compiler.reset()
    ours = passed(torch.compile(shared, dynamic=False) if compiled else shared, x, gradient)
    reference = nn.BatchNorm2d(8, device="cuda", dtype=torch.float64)
    with torch.no_grad():
        reference.weight.copy_(torch.linspace(0.5, 2, 8))
        reference.bias.copy_(torch.linspace(-1, 1, 8))
    expected = passed(reference, x.double(), gradient.double())
    close = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for ours_, expected_ in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_.double(), expected_, rtol=close, atol=close * float(expected_.abs().max()))
