"""The estimator alone, and one layer of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reste import BinaryConv2d, create_estimator, reste_sign, set_power
from trainer.bench.core import CALLS, Bench, Goal, Row, Work, ratio
from trainer.bench.naive import NaiveConv, NaiveSign

ELEMENTS = 32 * 32 * 56 * 56
"""3.2 million: an early activation of a ResNet with 32 images."""
ON_A_GPU = 64
"""Times as many there, so that the tensors do not fit its caches and no launch is seen."""
BYTES = 20
"""Of an element in float32, forward (read x, write its sign) and backward (read x and a gradient, write one)."""
COPIED_BYTES = 8
"""Of an element that is copied: read, written."""


def estimator_rows(bench: Bench) -> Iterator[Row]:
    """Forward and backward of `reste_sign` in float32, against those of `x * 1.5`, the naive sign, and a copy."""
    count = 2**12 if bench.quick else ELEMENTS * (ON_A_GPU if bench.is_cuda else 1)
    power = torch.tensor(2.0, device=bench.device)
    x = torch.randn(count, device=bench.device, requires_grad=True)
    gradient = torch.randn(count, device=bench.device)

    def both_ways(function: Callable[[Tensor], Tensor]) -> Work:
        return lambda: torch.autograd.grad(function(x), x, gradient)

    source, target = x.detach(), torch.empty_like(x)
    times = bench.race(
        {
            "reste": both_ways(bench.compile(lambda x: reste_sign(x, power))),
            "multiply": both_ways(bench.compile(lambda x: x * 1.5)),
            "eager multiply": both_ways(lambda x: x * 1.5),
            "naive": both_ways(lambda x: NaiveSign.apply(x, power)),
            "copy": lambda: target.copy_(source),
        },
        calls=CALLS,
    )
    where = f"{count:,} elements, float32"
    reste, multiply, eager = times["reste"], times["multiply"], times["eager multiply"]
    yield ratio("estimator", "time / that of x * 1.5", where, reste, multiply, Goal(2.5, 1.5, "lower"))
    yield ratio("estimator", "time / that of x * 1.5 not compiled", where, reste, eager, better="lower")
    yield ratio("estimator", "rate over the naive sign's", where, reste, times["naive"])
    # Both in the time of a gigabyte, so that their ratio is that of bandwidths.
    ours, copied = (
        [ms * 1e9 / (size * count) for ms in side] for side, size in ((reste, BYTES), (times["copy"], COPIED_BYTES))
    )
    goal = Goal(0.8, 0.9) if bench.is_cuda else None
    yield ratio("estimator", "bandwidth over a copy's", where, ours, copied, goal, unit="ms/GB")


def layer_rows(bench: Bench) -> Iterator[Row]:
    """Forward and backward of batch norm and a 3x3 convolution, C -> C: binary, dense and naive."""
    batch, channels, size = (2, 8, 8) if bench.quick else (256 if bench.is_cuda else 32, 64, 56)
    x = torch.randn(batch, channels, size, size, device=bench.device)

    def both_ways(layer: nn.Module, x: Tensor, *, plain: bool = False) -> Work:
        module = layer if plain else bench.compile(layer)
        inputs = x.detach().requires_grad_()

        def work() -> None:
            with bench.autocast() if not plain else torch.autocast(bench.device.type, enabled=False):
                out = module(inputs)
            out.backward(torch.ones_like(out))
            inputs.grad = None
            layer.zero_grad(set_to_none=True)

        return work

    ours = x.to(bench.dtype or x.dtype, memory_format=torch.channels_last)
    times = bench.race(
        {
            "binary": both_ways(binary_layer(channels, bench.device), ours),
            "dense": both_ways(_layer(channels, bench.device, nn.Conv2d), ours),
            "naive": both_ways(_layer(channels, bench.device, NaiveConv), x, plain=True),
        },
        calls=bench.calls,
    )
    where = f"batch norm and 3x3 conv, {batch} x {channels} x {size} x {size}, {bench.precision}"
    yield ratio("layer", "rate, binary over dense", where, times["binary"], times["dense"])
    yield ratio("layer", "rate, binary over naive float32", where, times["binary"], times["naive"])


def binary_layer(channels: int, device: torch.device) -> nn.Module:
    """Batch norm, signs and a binary 3x3 convolution, channels_last, at power 2."""
    estimators = {f"{of}_estimator": create_estimator("reste") for of in ("weight", "activation")}
    layer = _layer(channels, device, BinaryConv2d, **estimators).to(memory_format=torch.channels_last)
    set_power(layer, 2.0)
    return layer


def _layer(channels: int, device: torch.device, kind: Any, **options: Any) -> nn.Sequential:
    conv = kind(channels, channels, 3, padding=1, bias=False, **options)
    return nn.Sequential(nn.BatchNorm2d(channels), conv).to(device)
