"""Gradients that travel in 16 bits, against each rank's own gradients rounded and summed by hand."""

from __future__ import annotations

import json

import pytest
import torch
from spawn import run_ranks
from torch import nn

from trainer.config import load_config
from trainer.distributed import collectives
from trainer.distributed.ddp import DdpEngine, ReduceDtype
from trainer.errors import ConfigError

WORLD = 3
DTYPES = {"full": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECORDED = {"full": "Float", "bf16": "BFloat16", "fp16": "Half"}
"""As torch's flight recorder calls them."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))


def images(rank: int) -> torch.Tensor:
    return torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(rank))


def own_gradients(rank: int) -> list[torch.Tensor]:
    model = network()
    model(images(rank)).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def through_engine(reduce_dtype: ReduceDtype) -> tuple[list[torch.Tensor], set[tuple[str, str]]]:
    """This rank's gradients after the ranks have met, and operation and dtype of the collectives that took them."""
    model, cpu = network(), torch.device("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = DdpEngine(
        model, optimizer, precision="fp32", clip_norm=None, compile=False, device=cpu, reduce_dtype=reduce_dtype
    )
    engine.settle(images(0))
    before = len(json.loads(collectives.recorded())["gloo"]["entries"])
    with engine.accumulate(last=True):
        engine.backward(engine.forward(images(collectives.rank()), whole=True).square().sum())
    entries = json.loads(collectives.recorded())["gloo"]["entries"][before:]
    sent = {(entry["profiling_name"], entry["input_dtypes"][0]) for entry in entries}
    return [p.grad for p in model.parameters() if p.grad is not None], sent


@pytest.mark.parametrize("reduce_dtype", DTYPES)
def test_gradients_are_rounded_divided_and_summed_in_the_dtype_that_was_asked_for(reduce_dtype: ReduceDtype) -> None:
    dtype = DTYPES[reduce_dtype]
    every = [own_gradients(rank) for rank in range(WORLD)]
    expected = [sum(parts[1:], parts[0]) / WORLD for parts in zip(*every, strict=True)]
    found = run_ranks(through_engine, WORLD, reduce_dtype)
    assert all(torch.equal(mine, first) for got, _ in found for mine, first in zip(got, found[0][0], strict=True))
    # One rounding each of a gradient, its share and each sum.
    tolerance = (2 + WORLD) * torch.finfo(dtype).eps
    for mine, mean, *shares in zip(found[0][0], expected, *every, strict=True):
        size = sum(share.abs() for share in shares) / WORLD
        assert ((mine - mean).abs() <= tolerance * size + 1e-7).all()
        # What has been in 16 bits is still a number of that kind.
        assert torch.equal(mine, mine.to(dtype).float())
    assert found[0][1] == {("gloo:all_reduce", RECORDED[reduce_dtype])}


def test_deepspeed_is_told_in_its_own_file() -> None:
    with pytest.raises(ConfigError, match="communication_data_type"):
        load_config(None, ["engine=deepspeed", "train.reduce_dtype=bf16"])
