"""The kernels as torch operators `reste::...`, which `torch.compile` traces into; twins of `reference`, name by name.

Inputs that fill one piece of memory, row-major or channels_last, are read where they lie; others are copied first.
Signs, bits and `ste_backward` equal the reference bit for bit. `reste_backward` computes in float32 (float64 for
float64) by exp2(log2 |x| (1-o)/o), as the reference does; docs/kernels.md states the error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton
from triton.runtime.interpreter import InterpretedFunction

from .device import bits_kernel, reste_kernel, sign_kernel
from .reference import LANES, is_channels_last

INTERPRETED = isinstance(sign_kernel, InterpretedFunction)
"""Whether triton runs kernels in Python, on the CPU (TRITON_INTERPRET=1 before its import); for tests."""

_VALUES = 2048
"""Values of one program. Not tuned: this has not been run on a GPU."""


@triton_op("reste::sign_forward", mutates_args=())
def sign_forward(x: Tensor, dtype: torch.dtype, zero_is_one: bool = True) -> Tensor:
    """See `reference.sign_forward`."""
    x = _dense(x)
    sign = torch.empty_like(x, dtype=dtype)
    _launch_sign(x, sign, None, zero_is_one=zero_is_one)
    return sign


@triton_op("reste::pack_signs", mutates_args=())
def pack_signs(x: Tensor) -> Tensor:
    """See `reference.pack_signs`."""
    x = _dense(x)
    bits = _empty_bits(x)
    _launch_sign(x, None, bits)
    return bits


@triton_op("reste::sign_forward_packed", mutates_args=())
def sign_forward_packed(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `reference.sign_forward_packed`; one pass over `x`."""
    x = _dense(x)
    sign, bits = torch.empty_like(x, dtype=dtype), _empty_bits(x)
    _launch_sign(x, sign, bits)
    return sign, bits


@triton_op("reste::ste_forward", mutates_args=())
def ste_forward(x: Tensor, threshold: float, zero_is_one: bool = True) -> tuple[Tensor, Tensor]:
    """See `reference.ste_forward`; one pass over `x`."""
    x = _dense(x)
    sign, inside = torch.empty_like(x), _empty_bits(x)
    _launch_sign(x, sign, inside, zero_is_one=zero_is_one, threshold=threshold)
    return sign, inside


@triton_op("reste::unpack_signs", mutates_args=())
def unpack_signs(bits: Tensor, shape: Sequence[int], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """See `reference.unpack_signs`."""
    sign = torch.empty(shape, dtype=dtype, device=bits.device, memory_format=_format(channels_last))
    _launch_bits(None, bits, sign)
    return sign


@triton_op("reste::ste_backward", mutates_args=())
def ste_backward(grad: Tensor, bits: Tensor, channels_last: bool) -> Tensor:
    """See `reference.ste_backward`."""
    grad = grad.contiguous(memory_format=_format(channels_last))
    out = torch.empty_like(grad)
    _launch_bits(grad, bits, out)
    return out


@triton_op("reste::reste_backward", mutates_args=())
def reste_backward(
    grad: Tensor, x: Tensor, power: Tensor, gain: Tensor | None, threshold: float, knee: float
) -> Tensor:
    """See `reference.reste_backward`; neither `power` nor `gain` is read by the host."""
    x = _dense(x)
    grad = grad.contiguous(memory_format=_format(is_channels_last(x)))
    out = torch.empty_like(grad)
    count = x.numel()
    if count:
        wrap_triton(reste_kernel)[(triton.cdiv(count, _VALUES),)](
            grad,
            x,
            power,
            gain,
            out,
            count,
            THRESHOLD=threshold,
            KNEE=knee,
            BLOCK=_VALUES,
        )
    return out


def _launch_sign(
    x: Tensor, sign: Tensor | None, bits: Tensor | None, *, zero_is_one: bool = True, threshold: float | None = None
) -> None:
    count = x.numel()
    if count:
        wrap_triton(sign_kernel)[(triton.cdiv(count, _VALUES),)](
            x,
            sign,
            bits,
            count,
            THRESHOLD=threshold,
            ZERO_IS_ONE=zero_is_one,
            BYTES=_VALUES // LANES,
        )


def _launch_bits(grad: Tensor | None, bits: Tensor, out: Tensor) -> None:
    count = out.numel()
    if count:
        wrap_triton(bits_kernel)[(triton.cdiv(count, _VALUES),)](grad, bits, out, count, BYTES=_VALUES // LANES)


def _dense(x: Tensor) -> Tensor:
    return x if is_channels_last(x) else x.contiguous()


def _empty_bits(x: Tensor) -> Tensor:
    return torch.empty(-(-x.numel() // LANES), dtype=torch.uint8, device=x.device)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
