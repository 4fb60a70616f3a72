"""Signs with their backward passes on fused kernels; what `functional` hands over to where the kernels are chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import fused
from .fused import INTERPRETED
from .reference import is_channels_last

__all__ = ["INTERPRETED", "binary_sign", "reste_backward", "ste_sign"]


def binary_sign(x: Tensor, zero: str) -> Tensor:
    """See `functional.binary_sign`."""
    return fused.sign_forward(x.detach(), x.dtype, zero == "one")


def ste_sign(x: Tensor, threshold: float, zero: str) -> Tensor:
    """See `functional.ste_sign`; one bit per value is kept for the backward pass, instead of `x`."""
    return _SteSign.apply(x, threshold, zero == "one")[0]


def reste_backward(
    grad: Tensor, x: Tensor, power: Tensor, threshold: float, knee: float, gain: Tensor | float
) -> Tensor:
    """grad times the slope of ReSTE at `x`; see `reference.reste_backward`. A number as `gain` becomes a tensor."""
    if not isinstance(gain, Tensor):
        gain = None if gain == 1.0 else torch.full((), gain, dtype=power.dtype, device=x.device)
    elif gain.device != x.device:
        gain = gain.to(x.device)
    return fused.reste_backward(grad, x, power.to(x.device), gain, threshold, knee)


class _SteSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, threshold: float, zero_is_one: bool) -> tuple[Tensor, Tensor]:
        return fused.ste_forward(x, threshold, zero_is_one)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, inside = output
        ctx.mark_non_differentiable(inside)
        ctx.set_materialize_grads(False)
        ctx.channels_last = is_channels_last(inputs[0])
        ctx.save_for_backward(inside)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return None if grad is None else fused.ste_backward(grad, inside, ctx.channels_last), None, None
