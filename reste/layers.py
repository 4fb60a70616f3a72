"""Convolution and linear layers that binarise their input, their weight, both, or neither.

An estimator says how a tensor is binarised; None leaves that tensor in full precision. With s = mean |W|:

    scale="after"     y = op(sign(x), sign(W)) * s + b    default: op adds integers, so its zeros are exact
    scale="before"    y = op(sign(x), s sign(W)) + b      the official code: zeros become rounding noise
    scale="none"      y = op(sign(x), sign(W)) + b

The scale belongs to the binary weight: a full-precision weight is used as it is. Padding is added after the
sign, so a zero-padded border stays 0. The latent weight keeps the name `weight`, and the state dict is that
of the plain layer.

Shape letters: B batch, C and I input channels, O output channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn

from .curves import require_power
from .estimators import Estimator
from .quantizers import weight_scale

Scale = Literal["after", "before", "none"]
"""Where the weight's scale enters."""


@final
class BinaryConv2d(nn.Conv2d):
    """`nn.Conv2d` with binary input and weight.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as in `nn.Conv2d`.
        weight_estimator: binarises the weight (O, I/groups, H, W); None: full precision.
        activation_estimator: binarises the input (B, C, H, W); None: full precision.
        scale: "after", "before" or "none"; see the module's first lines.

    With both estimators None this is `nn.Conv2d`, bit for bit.

    Raises:
        ValueError: unknown `scale`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        weight_estimator: Estimator | None = None,
        activation_estimator: Estimator | None = None,
        scale: Scale = "after",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.weight_estimator = weight_estimator
        self.activation_estimator = activation_estimator
        self.scale = _checked_scale(scale)

    @property
    def weight_bits(self) -> int:
        """1 or 32."""
        return _bits(self.weight_estimator)

    @property
    def activation_bits(self) -> int:
        """1 or 32."""
        return _bits(self.activation_estimator)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        bias_O11 = None if self.bias is None else self.bias[:, None, None]
        return _binary_forward(self, x_BCHW, self._conv_forward, bias_O11)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_bits_repr(self)}"


@final
class BinaryLinear(nn.Linear):
    """`nn.Linear` with binary input and weight.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        weight_estimator: binarises the weight (O, I); None: full precision.
        activation_estimator: binarises the input (..., I); None: full precision.
        scale: "after", "before" or "none"; see the module's first lines.

    With both estimators None this is `nn.Linear`, bit for bit.

    Raises:
        ValueError: unknown `scale`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        weight_estimator: Estimator | None = None,
        activation_estimator: Estimator | None = None,
        scale: Scale = "after",
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.weight_estimator = weight_estimator
        self.activation_estimator = activation_estimator
        self.scale = _checked_scale(scale)

    @property
    def weight_bits(self) -> int:
        """1 or 32."""
        return _bits(self.weight_estimator)

    @property
    def activation_bits(self) -> int:
        """1 or 32."""
        return _bits(self.activation_estimator)

    def forward(self, x_BI: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return _binary_forward(self, x_BI, nn.functional.linear, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_bits_repr(self)}"


BinaryLayer: TypeAlias = BinaryConv2d | BinaryLinear
Operator: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryLayer]]:
    """Yield (name, layer), in module order, for every layer of `model` with a 1-bit weight or input."""
    for name, module in model.named_modules():
        if isinstance(module, BinaryLayer) and 1 in (module.weight_bits, module.activation_bits):
            yield name, module


def set_power(model: nn.Module, value: float) -> None:
    """Write `value` into the power of every estimator in `model` that has one.

    The buffers are written in place: nothing is recompiled and nothing is read back. Between a forward pass
    and its backward pass the power must stay; autograd raises RuntimeError otherwise.

    Raises:
        ValueError: `value` is below 1 or not finite.
    """
    require_power(value)
    for estimator in _with_power(model):
        estimator.write_power(value)


def get_power(model: nn.Module) -> float | None:
    """The power that all estimators of `model` are at; None if none has a power. Waits for the device.

    Raises:
        ValueError: the estimators are at different powers.
    """
    values = {estimator.power.item() for estimator in _with_power(model)}
    if len(values) > 1:
        raise ValueError(f"estimators are at different powers {sorted(values)}; call set_power(model, value)")
    return values.pop() if values else None


def _with_power(model: nn.Module) -> Iterator[Estimator]:
    for module in model.modules():
        if isinstance(module, Estimator) and module.has_power:
            yield module


def _binary_forward(layer: BinaryLayer, x: Tensor, operator: Operator, bias: Tensor | None) -> Tensor:
    """`operator(x, weight, bias)` with the signs and scale of `layer`; `bias` broadcasts over the output."""
    if layer.activation_estimator is not None:
        x = layer.activation_estimator(x)
    if layer.weight_estimator is None:
        return operator(x, layer.weight, layer.bias)
    sign = layer.weight_estimator(layer.weight)
    if layer.scale == "before":
        return operator(x, sign * weight_scale(layer.weight), layer.bias)
    if layer.scale == "none":
        return operator(x, sign, layer.bias)
    out = operator(x, sign, None) * weight_scale(layer.weight)
    # Under autocast `out` is low precision and the bias is not; the sum must not widen the result.
    return out if bias is None else out + bias.to(out.dtype)


def _checked_scale(scale: Scale) -> Scale:
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}; got {scale!r}")
    return scale


def _bits(estimator: Estimator | None) -> int:
    return 32 if estimator is None else 1


def _bits_repr(layer: BinaryLayer) -> str:
    return f"weight_bits={layer.weight_bits}, activation_bits={layer.activation_bits}, scale={layer.scale!r}"
