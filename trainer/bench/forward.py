"""What could be saved in the forward pass: convolutions of signs in int8, weights binarised once for many batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from reste import binary_layers, binary_sign, create_estimator, weight_scale
from trainer.bench.core import Bench, Goal, Row, ratio
from trainer.bench.networks import Steps

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
"""Channels and side of the four stages of ResNet-18 at 224 pixels."""


def int8_rows(bench: Bench) -> Iterator[Row]:
    """A 3x3 convolution of signs as a product of int8 matrices, against the convolution that training uses.

    Both give the sums of signs; those of int8 are compared with float32's, which holds them exactly.

    Raises:
        ArithmeticError: the sums differ.
    """
    batch = 2 if bench.quick else (256 if bench.is_cuda else 32)
    for channels, side in SHAPES[-1:] if bench.quick else SHAPES:
        signs, weight = (
            binary_sign(torch.randn(shape, device=bench.device)).to(memory_format=torch.channels_last)
            for shape in ((batch, channels, side, side), (channels, channels, 3, 3))
        )
        product, convolution = bench.compile(int8_convolution), bench.compile(F.conv2d)
        exact = F.conv2d(signs, weight, padding=1)
        narrow_signs, narrow_weight = signs.to(torch.int8), weight.to(torch.int8)
        if not torch.equal(product(narrow_signs, narrow_weight).float(), exact):
            raise ArithmeticError(f"int8 gives other sums than float32 for {channels} channels: nothing to measure")
        signs, weight = (x.to(bench.dtype or x.dtype) for x in (signs, weight))
        times = bench.race(
            {
                "int8": partial(product, narrow_signs, narrow_weight),
                "float": partial(convolution, signs, weight, padding=1),
            },
            calls=bench.calls,
        )
        where = f"{batch} x {channels} x {side} x {side}, sums equal"
        what = f"forward rate, int8 matrices over {bench.precision} convolution"
        yield ratio("int8", what, where, times["int8"], times["float"], Goal(1.3, 1.6))


def int8_convolution(signs: Tensor, weight: Tensor) -> Tensor:
    """The 3x3 convolution with stride 1 and one pixel of zeros around, as one product of int8 matrices.

    Args:
        signs: (B, C, H, W) int8, channels_last.
        weight: (O, C, 3, 3) int8.

    Returns:
        (B, O, H, W) int32, channels_last.
    """
    batch, channels, height, width = signs.shape
    padded = F.pad(signs.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    taps = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    columns = torch.cat(taps, dim=3).view(-1, 9 * channels)
    sums = torch._int_mm(columns, weight.permute(2, 3, 1, 0).reshape(9 * channels, -1))
    return sums.view(batch, height, width, -1).permute(0, 3, 1, 2)


def weights_rows(bench: Bench) -> Iterator[Row]:
    """Signs and scale of all weights of ResNet-18, forward and backward, as a share of a step: what each further
    micro-batch of a step would save if its weights were binarised before."""
    steps = Steps(bench)
    step = steps.binary()
    count = sum(layer.weight.numel() for _, layer in binary_layers(step.model))
    weight = torch.randn(count, device=bench.device, requires_grad=True)
    gradient = torch.randn(count, device=bench.device)
    estimator = create_estimator("reste", power=2.0).to(bench.device)
    compiled = bench.compile(lambda weight: (estimator(weight).to(bench.dtype or weight.dtype), weight_scale(weight)))

    def binarise() -> None:
        signs, scale = compiled(weight)
        torch.autograd.grad([signs, scale], weight, [gradient.to(signs.dtype), torch.ones_like(scale)])

    times = bench.race({"weights": binarise, "step": step}, calls=bench.calls)
    where = f"{steps.where}, {count:,} weights, {bench.precision}"
    what = "time to binarise all weights / a step's"
    yield ratio("weights", what, where, times["weights"], times["step"], better="lower")
