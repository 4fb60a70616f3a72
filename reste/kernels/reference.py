"""What every fused kernel computes, in plain torch: the definition of correct. Nothing trains with these.

Packed bits. One bit per value, in the order in which the values lie in memory: bit i % 8 of byte i // 8, counted
from the lowest, belongs to value i, and the bits beyond the last value are 0. That is numpy's
`packbits(..., bitorder="little")`. Memory order is channels_last for a 4-d tensor that is laid out so and not
contiguous, and row-major for all others, copied first if they have gaps. Bits do not know the shape or order of what
they were packed from; whoever unpacks them says both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..curves import reste_slope, widen

LANES = 8
"""Values in a byte."""


def is_channels_last(x: Tensor) -> bool:
    """Whether the values of `x` are packed in channels_last order."""
    return not x.is_contiguous() and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def sign_forward(x: Tensor, dtype: torch.dtype, zero_is_one: bool = True) -> Tensor:
    """+1 for x >= 0 and NaN, -1 for x < 0; with `zero_is_one` false, 0 for +-0.0 and NaN.

    Args:
        x: any shape, any floating dtype.
        dtype: of the result, floating or signed integer.
        zero_is_one: the value at zero.
    """
    positive = ~(x < 0) if zero_is_one else x > 0
    return (positive.to(torch.int8) - (x < 0).to(torch.int8)).to(dtype)


def pack_signs(x: Tensor) -> Tensor:
    """One bit per value, 1 where `sign_forward` gives +1; uint8 (ceil(n / 8),) of a tensor of n values."""
    return _pack(~(x < 0))


def unpack_signs(bits: Tensor, shape: Sequence[int], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """+-1 from the bits of `pack_signs`.

    Args:
        bits: uint8, as many as `shape` needs.
        shape: of the tensor that was packed.
        dtype: of the result.
        channels_last: the order in which it was packed, and memory format of the result.
    """
    return _unpack(bits, shape, channels_last).to(dtype).mul_(2).sub_(1)


def sign_forward_packed(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`sign_forward` and `pack_signs` of `x`."""
    return sign_forward(x, dtype), pack_signs(x)


def ste_forward(x: Tensor, threshold: float, zero_is_one: bool = True) -> tuple[Tensor, Tensor]:
    """The sign of `x` in its dtype, and one bit per value: whether |x| <= threshold. That bit is all that the
    backward pass of the clipped straight-through estimator needs."""
    return sign_forward(x, x.dtype, zero_is_one), _pack(widen(x).abs() <= threshold)


def ste_backward(grad: Tensor, bits: Tensor, channels_last: bool) -> Tensor:
    """grad times the bits of `ste_forward`, 0 or 1; NaN where a gradient that is not finite meets a 0.

    Args:
        grad: any shape, any floating dtype.
        bits: packed from a tensor of that shape.
        channels_last: the order in which they were packed, and memory format of the result.
    """
    return (_unpack(bits, grad.shape, channels_last).to(grad.dtype) * grad).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def reste_backward(
    grad: Tensor, x: Tensor, power: Tensor, gain: Tensor | None, threshold: float, knee: float
) -> Tensor:
    """grad times `curves.reste_slope` of `x`, multiplied in float32 or better, rounded once to the dtype of `grad`.

    Args:
        grad: shape of `x`, any floating dtype.
        x: any shape, any floating dtype.
        power: o, 0-d, on the device of `x`.
        gain: 0-d, on the device of `x`; None for 1.
        threshold, knee: t and m, as in `curves.reste_slope`.
    """
    slope = reste_slope(x, power, threshold, knee, gain=1.0 if gain is None else gain)
    return (grad * slope).to(grad.dtype)


def _pack(flags: Tensor) -> Tensor:
    ordered = (flags.permute(0, 2, 3, 1) if is_channels_last(flags) else flags).reshape(-1)
    padded = torch.nn.functional.pad(ordered.to(torch.uint8), (0, -len(ordered) % LANES))
    weights = 2 ** torch.arange(LANES, device=flags.device)
    return (padded.view(-1, LANES) * weights).sum(dim=1).to(torch.uint8)


def _unpack(bits: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    count = torch.Size(shape).numel()
    lanes = torch.arange(LANES, device=bits.device)
    ordered = (bits.to(torch.int64)[:, None] >> lanes & 1).reshape(-1)[:count]
    if not channels_last:
        return ordered.reshape(tuple(shape))
    batch, channels, height, width = shape
    return ordered.view(batch, height, width, channels).permute(0, 3, 1, 2)
