"""Convolution and linear layers that binarise their input, their weight, both, or neither.

An estimator says how a tensor is binarised; None leaves that tensor in full precision. With the scale s, mean |W|:

    scale="after"     y = op(sign(x), sign(W)) * s + b    default: op adds integers, so its zeros are exact
    scale="before"    y = op(sign(x), s sign(W)) + b      the official code: zeros become rounding noise
    scale="none"      y = op(sign(x), sign(W)) + b

s is the layer's scaling (`reste.scalings`), one number or one for each output channel; `none` leaves it out. A
quantiser q, where there is one, comes before the sign: sign(q(x)), sign(q(W)), and s of q(W). The scale belongs to
the binary weight: a full-precision weight is used as it is. Padding is added after the sign, so a border
of zeros stays 0. The latent weight keeps the name `weight`, and without quantisers the state dict is that of the plain
layer.

Shape letters: B batch, C and I input channels, O output channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn

from .buffers import Scheduled
from .curves import require_power
from .estimators import Estimator
from .quantizers import Quantizer
from .scalings import Scaling, carry_scale_gradient, create_scaling

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
        weight_quantizer, activation_quantizer: what is done to weight and input before their signs; None: nothing. Not
            used where the estimator of that side is None.
        scale: "after", "before" or "none"; see the module's first lines.
        scaling: which scale: one of `list_scalings()`, or a `Scaling` made for this weight. Not used where the
            weight's estimator is None.

    With both estimators None this is `nn.Conv2d`, bit for bit.

    Raises:
        ValueError: unknown `scale` or `scaling`.
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
        weight_quantizer: Quantizer | None = None,
        activation_quantizer: Quantizer | None = None,
        scale: Scale = "after",
        scaling: str | Scaling = "layer",
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
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer
        self.scale = _checked_scale(scale)
        self.scaling = _scaling_of(self, scaling)

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
        return _binary_forward(self, x_BCHW, self._conv_forward, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_bits_repr(self)}"


@final
class BinaryLinear(nn.Linear):
    """`nn.Linear` with binary input and weight.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        weight_estimator: binarises the weight (O, I); None: full precision.
        activation_estimator: binarises the input (..., I); None: full precision.
        weight_quantizer, activation_quantizer: what is done to weight and input before their signs; None: nothing. Not
            used where the estimator of that side is None.
        scale: "after", "before" or "none"; see the module's first lines.
        scaling: which scale: one of `list_scalings()`, or a `Scaling` made for this weight. Not used where the
            weight's estimator is None.

    With both estimators None this is `nn.Linear`, bit for bit.

    Raises:
        ValueError: unknown `scale` or `scaling`.
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
        weight_quantizer: Quantizer | None = None,
        activation_quantizer: Quantizer | None = None,
        scale: Scale = "after",
        scaling: str | Scaling = "layer",
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.weight_estimator = weight_estimator
        self.activation_estimator = activation_estimator
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer
        self.scale = _checked_scale(scale)
        self.scaling = _scaling_of(self, scaling)

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
        return _binary_forward(self, x_BI, nn.functional.linear, 0)

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


def power_layers(model: nn.Module) -> list[list[Estimator]]:
    """For every module of `model` that owns an estimator with a power, those of its estimators, in module order.

    `write_powers` takes this: walking through a network costs more than the writing, and a training does it once.
    """
    found = ([child for child in module.children() if isinstance(child, Estimator)] for module in model.modules())
    with_power = ([estimator for estimator in estimators if estimator.has_power] for estimators in found)
    return [estimators for estimators in with_power if estimators]


def write_powers(layers: Sequence[Sequence[Estimator]], power: Callable[[float], float]) -> None:
    """Write a power for each layer; see `set_power` for the rules.

    Args:
        layers: of `power_layers`.
        power: of a layer's depth, 0 for the first layer and 1 for the last one.

    Raises:
        ValueError: a power is below 1 or not finite.
    """
    held: list[tuple[Tensor, float]] = []
    for place, estimators in enumerate(layers):
        value = power(place / max(len(layers) - 1, 1))
        require_power(value)
        for estimator in estimators:
            held += estimator.at_power(value)
    if held and all(buffer.is_cuda for buffer, _ in held):
        write_together(held)
        return
    for buffer, number in held:
        buffer.fill_(number)


def write_together(held: Sequence[tuple[Tensor, float]]) -> None:
    """Write many 0-d tensors of one device by one copy to it and one kernel, where each by itself is a launch.

    Args:
        held: pairs of a tensor and what it is to hold.
    """
    buffers = [buffer for buffer, _ in held]
    numbers = torch.tensor([number for _, number in held], dtype=torch.float64).to(buffers[0].dtype)
    if buffers[0].is_cuda:
        numbers = numbers.pin_memory()  # else the host would wait for all that the device has still to do
    torch._foreach_copy_(buffers, numbers.to(buffers[0].device, non_blocking=True).unbind())


def set_powers(model: nn.Module, power: Callable[[float], float]) -> None:
    """Write a power for each layer of `model`; as `set_power`, which writes one for all, and `write_powers`.

    Raises:
        ValueError: a power is below 1 or not finite.
    """
    write_powers(power_layers(model), power)


def get_power(model: nn.Module) -> float | None:
    """The power that all estimators of `model` are at; None if none has a power. Waits for the device.

    Raises:
        ValueError: the estimators are at different powers.
    """
    values = {estimator.power.item() for estimator in _with_power(model)}
    if len(values) > 1:
        raise ValueError(f"estimators are at different powers {sorted(values)}; call set_power(model, value)")
    return values.pop() if values else None


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell every part of `model` that changes with training how much of it is done; see `set_power` for the rules.

    Raises:
        ValueError: `progress` is outside [0, 1].
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    for module in model.modules():
        if isinstance(module, Scheduled):
            module.write_progress(progress)


def _with_power(model: nn.Module) -> Iterator[Estimator]:
    for module in model.modules():
        if isinstance(module, Estimator) and module.has_power:
            yield module


def quantized_weight(layer: BinaryLayer) -> Tensor:
    """What the sign of a layer's weight is taken of, in the weight's shape: q(W), or W without a quantiser."""
    return layer.weight if layer.weight_quantizer is None else layer.weight_quantizer(layer.weight)


def binary_weight(layer: BinaryLayer) -> tuple[Tensor, Tensor | None]:
    """Signs of a layer's binary weight, in its shape, and their scale: 0-d, (O,), or None where there is none."""
    assert layer.weight_estimator is not None, "a full-precision weight has no signs"
    weight = quantized_weight(layer)
    sign = layer.weight_estimator(weight)
    if layer.scale == "none" or layer.scaling is None or layer.scaling.name == "none":
        return sign, None
    return sign, layer.scaling(weight)


def over_channels(scale: Tensor, dims: int) -> Tensor:
    """A scale (O,) with `dims` dimensions behind the channels', to be multiplied; one number as it is."""
    return scale if scale.dim() == 0 else scale.view(-1, *[1] * dims)


def _binary_forward(layer: BinaryLayer, x: Tensor, operator: Operator, dims: int) -> Tensor:
    """`operator(x, weight, bias)` with the signs and scale of `layer`; its output has `dims` dimensions behind O."""
    if layer.activation_estimator is not None:
        x = layer.activation_estimator(x if layer.activation_quantizer is None else layer.activation_quantizer(x))
    if layer.weight_estimator is None:
        return operator(x, layer.weight, layer.bias)
    sign, scale = binary_weight(layer)
    if scale is None:
        return operator(x, sign, layer.bias)
    if layer.scale == "before":
        return operator(x, sign * over_channels(scale, sign.dim() - 1), layer.bias)
    out = operator(x, carry_scale_gradient(sign, scale), None)
    # Under autocast `out` is low precision, scale and bias are not; they must not widen the result.
    out = (out * over_channels(scale.detach(), dims)).to(out.dtype)
    return out if layer.bias is None else out + over_channels(layer.bias, dims).to(out.dtype)


def _checked_scale(scale: Scale) -> Scale:
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}; got {scale!r}")
    return scale


def _scaling_of(layer: BinaryLayer, scaling: str | Scaling) -> Scaling | None:
    """None for a full-precision weight, so that nothing learned is left without a gradient."""
    made = create_scaling(scaling, layer.weight.shape[0]) if isinstance(scaling, str) else scaling
    return None if layer.weight_estimator is None else made.to(layer.weight.device, layer.weight.dtype)


def _bits(estimator: Estimator | None) -> int:
    return 32 if estimator is None else 1


def _bits_repr(layer: BinaryLayer) -> str:
    return f"weight_bits={layer.weight_bits}, activation_bits={layer.activation_bits}, scale={layer.scale!r}"
