"""The code that runs on the device. Kernels walk through memory in its order; shapes and strides stay with the host.

A tile of a kernel with bits is BYTES x 8 values, so that a byte's eight values are neighbours in memory and one
thread can hold them. Positions are 64-bit: an activation may have more than 2^31 values.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _wide(x):  # type: ignore[no-untyped-def]
    return x.to(tl.float64 if x.dtype == tl.float64 else tl.float32)


@triton.jit
def _tile(count, BYTES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers of this program's bytes (BYTES,) and values (BYTES, 8), and which of the values there are."""
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    value = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    return byte, value, value < count


@triton.jit
def sign_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    sign_ptr,
    bits_ptr,
    count,
    THRESHOLD: tl.constexpr,
    ZERO_IS_ONE: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Signs, and one bit per value: whether |x| <= THRESHOLD; without one, whether not x < 0.

    What is not wanted has None for its pointer.
    """
    byte, value, there = _tile(count, BYTES)
    x = tl.load(x_ptr + value, mask=there, other=0.0)
    negative = x < 0
    if sign_ptr is not None:
        at_zero = 1.0 if ZERO_IS_ONE else 0.0
        sign = tl.where(negative, -1.0, tl.where(x > 0, 1.0, at_zero))
        tl.store(sign_ptr + value, sign.to(sign_ptr.dtype.element_ty), mask=there)
    if bits_ptr is not None:
        flag = negative == 0
        if THRESHOLD is not None:
            magnitude = tl.abs(_wide(x))
            flag = magnitude <= tl.full((), THRESHOLD, magnitude.dtype)
        weighted = (flag & there).to(tl.int32) << tl.arange(0, 8)[None, :]
        tl.store(bits_ptr + byte, tl.sum(weighted, axis=1).to(tl.uint8), mask=byte * 8 < count)


@triton.jit
def bits_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    bits_ptr,
    out_ptr,
    count,
    BYTES: tl.constexpr,
):
    """The gradient times its bit; without a gradient +-1 from the bits."""
    byte, value, there = _tile(count, BYTES)
    packed = tl.load(bits_ptr + byte, mask=byte * 8 < count, other=0).to(tl.int32)
    out = (packed[:, None] >> tl.arange(0, 8)[None, :]) & 1
    if grad_ptr is None:
        out = 2 * out - 1
    else:
        # A product, not a choice: a gradient that is not finite must not vanish unseen.
        grad = _wide(tl.load(grad_ptr + value, mask=there, other=0.0))
        out = grad * out.to(grad.dtype)
    tl.store(out_ptr + value, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def reste_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    power_ptr,
    gain_ptr,
    out_ptr,
    count,
    THRESHOLD: tl.constexpr,
    KNEE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient times the slope of ReSTE, recomputed from x."""
    value = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = value < count
    magnitude = tl.abs(_wide(tl.load(x_ptr + value, mask=there, other=0.0)))
    grad = tl.load(grad_ptr + value, mask=there, other=0.0)
    power = tl.load(power_ptr).to(magnitude.dtype)
    # Numbers in the dtype of x: 0.1 of float32 is another than 0.1 of float64.
    chord = tl.full((), 1.0, magnitude.dtype)
    knee = tl.full((), KNEE, magnitude.dtype)
    threshold = tl.full((), THRESHOLD, magnitude.dtype)
    if gain_ptr is not None:
        chord = tl.load(gain_ptr).to(magnitude.dtype)
    tangent = chord / power
    exponent = (1.0 - power) / power
    # exp2 is one instruction of the device; pow is many.
    steep = tl.exp2(tl.log2(tl.clamp(magnitude, knee, threshold)) * exponent)
    slope = steep * tl.where(magnitude <= knee, chord, tangent)
    slope = tl.where(magnitude <= threshold, slope, 0.0)
    tl.store(out_ptr + value, (grad * slope).to(out_ptr.dtype.element_ty), mask=there)
