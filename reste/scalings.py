"""What multiplies the signs of a weight: one number for the layer, or one for each output channel.

A `Scaling` maps a weight (O, ...), after its quantiser if it has one, to its scale, 0-d or (O,). The layer multiplies
it into the weight or into the output (`reste.layers`). To add one: a final class with `@register_scaling` here, its
formula as its docstring, and its twin in tests/numeric/test_scalings.py.

    name               scale                             gradient                      source
    layer              mean |W| over the layer           sign(W) / n to the weight     ReSTE, Wu et al. 2023
    channel            mean |W_o|                        sign(W_o) / n_o to the weight XNOR-Net, Rastegari et al. 2016
    channel_detached   mean |W_o|                        none                          Bi-Real Net, Liu et al. 2018
    learned            a parameter alpha_o               to alpha_o                    ReCU, Xu et al. 2021
    power_of_two       2^round(log2 mean |W_o|)          none                          IR-Net, Qin et al. 2020
    none               1                                 none
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, TypeVar, final, get_args

import torch
from torch import Tensor, nn

from .names import Registry


class Scaling(nn.Module, ABC):
    """The scale of a weight's signs.

    Attributes:
        name: the registered name.
        per_channel: whether it has a number for each output channel.
    """

    name: ClassVar[str]
    per_channel: ClassVar[bool] = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The scale of `weight` (O, ...): 0-d, or (O,) where `per_channel`."""


S = TypeVar("S", bound=type[Scaling])
_REGISTRY: Registry[Scaling] = Registry("scaling")


def register_scaling(cls: S) -> S:
    """Class decorator: make a scaling available under `cls.name`.

    Raises:
        ValueError: the name is taken.
    """
    _REGISTRY.register(cls)
    return cls


def list_scalings() -> list[str]:
    """Names of what may multiply the signs of a weight, sorted."""
    return sorted(_REGISTRY.classes)


def create_scaling(name: str, channels: int, /, **options: Any) -> Scaling:
    """Build a new scaling; one instance for each weight.

    Args:
        name: one of `list_scalings()`.
        channels: output channels of the weight.
        **options: the keyword arguments of that scaling's class.

    Raises:
        ValueError: unknown name, unknown option, or an option out of range.
    """
    return _REGISTRY.create(name, channels, **options)


def weight_scale(weight: Tensor) -> Tensor:
    """s = mean |W| over all dimensions: one number per layer (ReSTE, Wu et al., ICCV 2023).

    Not detached: the gradient sign(W)/n flows into the latent weight as well.

    Args:
        weight: latent weight, any shape.

    Returns:
        0-d tensor in the dtype of `weight`.
    """
    return weight.abs().mean()


def channel_scale(weight: Tensor) -> Tensor:
    """s_o = mean |W_o| over all dimensions but the first: (O, ...) to (O,), not detached."""
    return weight.abs().flatten(1).mean(1)


@final
@register_scaling
class LayerScaling(Scaling):
    """s = mean |W|, one number (ReSTE, Wu et al., ICCV 2023); see `weight_scale`."""

    name = "layer"
    per_channel = False

    def forward(self, weight: Tensor) -> Tensor:
        """See `Scaling`."""
        return weight_scale(weight)


@final
@register_scaling
class ChannelScaling(Scaling):
    """s_o = mean |W_o|, whose gradient flows into the weight (XNOR-Net, Rastegari et al., ECCV 2016)."""

    name = "channel"

    def forward(self, weight: Tensor) -> Tensor:
        """See `Scaling`."""
        return channel_scale(weight)


@final
@register_scaling
class DetachedChannelScaling(Scaling):
    """s_o = mean |W_o| as a constant (Bi-Real Net, Liu et al., ECCV 2018; ReActNet, Liu et al., ECCV 2020)."""

    name = "channel_detached"

    def forward(self, weight: Tensor) -> Tensor:
        """See `Scaling`."""
        return channel_scale(weight.detach())


Start = Literal["uniform", "ones"]
"""What a learned scale starts from."""


@final
@register_scaling
class LearnedScaling(Scaling):
    """s_o = alpha_o, a parameter (ReCU, Xu et al., ICCV 2021).

    The parameter has one dimension: it belongs to the role `bias` of the optimizer, without weight decay by default.

    Args:
        channels: O.
        init: "uniform" on (0, 1], ReCU's own, or "ones". Not 0, where the gradient of a scale cannot be found from
            what a layer keeps (`carry_scale_gradient`).

    Raises:
        ValueError: an unknown `init`.
    """

    name = "learned"

    def __init__(self, channels: int, *, init: Start = "uniform") -> None:
        super().__init__(channels)
        if init not in get_args(Start):
            raise ValueError(f"init must be one of {', '.join(get_args(Start))}; got {init!r}")
        self.init = init
        self.alpha = nn.Parameter(torch.ones(channels) if init == "ones" else 1 - torch.rand(channels))

    def forward(self, weight: Tensor) -> Tensor:
        """See `Scaling`."""
        return self.alpha

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"init={self.init!r}"


@final
@register_scaling
class PowerOfTwoScaling(Scaling):
    """s_o = 2^round(log2 mean |W_o|) as a constant: a shift of bits (IR-Net, Qin et al., CVPR 2020)."""

    name = "power_of_two"

    def forward(self, weight: Tensor) -> Tensor:
        """See `Scaling`."""
        return channel_scale(weight.detach()).log2().round().exp2()


@final
@register_scaling
class NoScaling(Scaling):
    """s = 1: the signs are used as they are; layers leave the multiplication out."""

    name = "none"
    per_channel = False

    def forward(self, weight: Tensor) -> Tensor:
        """See `Scaling`."""
        return weight.new_ones(())


def carry_scale_gradient(sign: Tensor, scale: Tensor) -> Tensor:
    """`sign`, with the gradient of the scale that multiplies the operator's output.

    The operator is linear in its weight S, so that for y = s op(x, S) and G = dL/dy

        dL/ds = <G, op(x, S)> = <dL/dS, S> / s          each output channel by itself where s has one number for each

    and the output need not be kept for the backward pass. s = 0 passes no gradient on: where s is a mean of magnitudes,
    it is 0 only where every weight is 0, and has no slope there.

    Args:
        sign: S, (O, ...).
        scale: s, 0-d or (O,), which multiplies the output as a constant. If nothing is asked of its gradient, `sign`
            is returned as it is.
    """
    return _CarryScaleGradient.apply(sign, scale) if scale.requires_grad else sign


class _CarryScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(sign: Tensor, scale: Tensor) -> Tensor:
        return sign.view_as(sign)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        sign, scale = ctx.saved_tensors
        product = grad * sign
        total = product.sum() if scale.dim() == 0 else product.flatten(1).sum(1)
        return grad, torch.where(scale != 0, total / scale, 0.0).to(scale.dtype)
