"""Signs with any slope of a curve behind them: what the estimators of the field share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .curves_field import dsq_slope, dsq_slope_of_k
from .functional import Zero, binary_sign

Argument: TypeAlias = Tensor | float
"""What a slope takes beside x: a number, or a 0-d tensor that changes with training."""


def surrogate(
    x: Tensor, values: Callable[[Tensor], Tensor], slope: Callable[..., Tensor], *arguments: Argument
) -> Tensor:
    """values(x) with the slope of a surrogate curve in the backward pass.

    Args:
        x: any shape.
        values: of `x`, in its dtype and shape.
        slope: of `x` and `arguments`, in float32 or better.
        *arguments: no gradient reaches them; tensors must not be written before the backward pass.
    """
    return _Surrogate.apply(x, values, slope, arguments)


def surrogate_sign(x: Tensor, slope: Callable[..., Tensor], *arguments: Argument, zero: Zero = "one") -> Tensor:
    """The sign of `x` with the slope of a surrogate curve.

        y = sign(x),    g(x) = slope(x, *arguments)

    Args:
        x: any shape.
        slope: of `curves` or `curves_field`.
        *arguments: of `slope`; see `surrogate`.
        zero: see `binary_sign`.

    Raises:
        ValueError: an unknown `zero`.
    """
    return surrogate(x, partial(binary_sign, zero=zero), slope, *arguments)


def dsq_sign(x: Tensor, k: Argument, *, zero: Zero = "one") -> Tensor:
    """The sign of `x` with the slope of `dsq_curve`; its derivative by k reaches k, where that is a tensor.

    Args:
        x: any shape.
        k: > 0, a 0-d tensor or a number.
        zero: see `binary_sign`.

    Raises:
        ValueError: an unknown `zero`.
    """
    if not isinstance(k, Tensor):
        return surrogate_sign(x, dsq_slope, k, zero=zero)
    return _DsqSign.apply(x, k, zero)


class _Surrogate(torch.autograd.Function):
    """values(x) forward, slope(x, *arguments) backward."""

    # One tuple and not *arguments: without a gradient to take, Dynamo tells this signature from one with a context by
    # the number of parameters.
    @staticmethod
    def forward(
        x: Tensor, values: Callable[[Tensor], Tensor], slope: Callable[..., Tensor], arguments: tuple[Argument, ...]
    ) -> Tensor:
        return values(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.slope, arguments = inputs
        ctx.numbers = [None if isinstance(given, Tensor) else given for given in arguments]
        ctx.save_for_backward(x, *(given for given in arguments if isinstance(given, Tensor)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        left = iter(tensors)
        arguments = [next(left) if number is None else number for number in ctx.numbers]
        return (grad * ctx.slope(x, *arguments)).to(grad.dtype), None, None, None


class _DsqSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, k: Tensor, zero: Zero) -> Tensor:
        return binary_sign(x, zero=zero)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, k = ctx.saved_tensors
        of_k = (grad * dsq_slope_of_k(x, k)).sum().to(k.dtype) if ctx.needs_input_grad[1] else None
        return (grad * dsq_slope(x, k)).to(grad.dtype), of_k, None
