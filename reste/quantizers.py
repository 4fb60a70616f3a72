"""What is done to a tensor before its sign is taken.

A `Quantizer` maps a weight or an input to another of the same shape; the estimator then takes the sign of that. To add
one: a final class with `@register_quantizer` here, its formula as its docstring, and its twin in the tests.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from .buffers import Scheduled
from .curves import widen
from .names import Registry


class Quantizer(Scheduled, ABC):
    """Maps a tensor to one of the same shape, whose sign is taken next.

    Made with `channels` first: output channels of the weight (O, I, H, W), or channels of the input (B, C, H, W).
    Gradients are autograd's unless the class says otherwise.

    Attributes:
        name: the registered name.
        sides: what it can be put on: "weight", "activation" or both.
        keeps_signs: whether in eval mode sign(q(x)) = sign(x), so that who wants signs alone may leave it out.
    """

    name: ClassVar[str]
    sides: ClassVar[frozenset[str]]
    keeps_signs: ClassVar[bool] = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """See the class."""


Q = TypeVar("Q", bound=type[Quantizer])
_REGISTRY: Registry[Quantizer] = Registry("quantizer")


def register_quantizer(cls: Q) -> Q:
    """Class decorator: make a quantiser available under `cls.name`.

    Raises:
        ValueError: the name is taken.
    """
    _REGISTRY.register(cls)
    return cls


def list_quantizers(side: str | None = None) -> list[str]:
    """Names of all registered quantisers, sorted; with a `side`, of those that fit there."""
    return sorted(name for name, cls in _REGISTRY.classes.items() if side is None or side in cls.sides)


def create_quantizer(name: str, channels: int, /, **options: Any) -> Quantizer:
    """Build a new quantiser; one instance for each tensor.

    Args:
        name: one of `list_quantizers()`.
        channels: see `Quantizer`.
        **options: the keyword arguments of that quantiser's class.

    Raises:
        ValueError: unknown name, unknown option, or an option out of range.
    """
    return _REGISTRY.create(name, channels, **options)


def centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, ...) less the mean of each of the N, and the unbiased variance of each: (N, 1, ...), 0 of a single number."""
    dims = tuple(range(1, x.dim()))
    rest = x - x.mean(dims, keepdim=True)
    return rest, rest.square().sum(dims, keepdim=True) / max(math.prod(x.shape[1:]) - 1, 1)


@final
@register_quantizer
class Standardize(Quantizer):
    """IR-Net's balanced and standardised weight (Qin et al., CVPR 2020), for each output channel o:

        q(W)_o = (W_o - mean W_o) / std W_o            std unbiased

    Half the signs are +1 and half -1 in an even distribution, which is where they carry most information. The gradient
    flows through mean and deviation. A channel of equal weights becomes zeros, without a gradient.

    Args:
        channels: O.
    """

    name = "standardize"
    sides = frozenset({"weight"})

    def forward(self, x: Tensor) -> Tensor:
        """(O, ...) to the same shape."""
        rest, variance = centred(widen(x))
        some = variance > 0
        return torch.where(some, rest / torch.where(some, variance, 1).sqrt(), 0).to(x.dtype)


@final
@register_quantizer
class Recu(Quantizer):
    """ReCU's rectified clamp unit (Xu et al., ICCV 2021). For each output channel o

        w_o  = (W_o - mean W_o) 2 sqrt(2) / sqrt(var W_o + 1e-5)       var unbiased
        q(W) = clamp(w, -Q, Q),    Q = -E|w| ln(2 - 2 tau),    E over the layer

    A Laplace distribution of mean 0 has the quantile Q at tau, from E|w| alone: the clamp revives weights in the tails,
    which would never change their sign. Q is a constant in the backward pass, and beyond it no gradient passes. tau
    rises over the share p of training:

        tau(p) = A e^p + B,    A = (tau_end - tau_start) / (e - 1),    B = tau_start - A

    Args:
        channels: O.
        tau_start, tau_end: 0.5 < tau_start <= tau_end < 1; 0.85 and 0.99 are the paper's.

    Raises:
        ValueError: they are not in that order: a clamp at or below 0 would leave nothing.
    """

    name = "recu"
    sides = frozenset({"weight"})
    tau: Tensor

    def __init__(self, channels: int, *, tau_start: float = 0.85, tau_end: float = 0.99) -> None:
        super().__init__(channels)
        if not 0.5 < tau_start <= tau_end < 1:
            raise ValueError(f"recu needs 0.5 < tau_start <= tau_end < 1, got {tau_start} and {tau_end}")
        self.tau_start, self.tau_end = tau_start, tau_end
        self.hold("tau", tau_start)

    def write_progress(self, progress: float) -> None:
        """Write tau for this share of training, in [0, 1]."""
        rise = math.expm1(progress) / math.expm1(1)
        self.tau.fill_(self.tau_start + (self.tau_end - self.tau_start) * rise)

    def forward(self, x: Tensor) -> Tensor:
        """(O, ...) to the same shape."""
        rest, variance = centred(widen(x))
        w = rest * (math.sqrt(8) / (variance + 1e-5).sqrt())
        bound = -w.detach().abs().mean() * (2 - 2 * self.tau).log()
        return w.clamp(-bound, bound).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"tau {self.tau_start} to {self.tau_end}"


@final
@register_quantizer
class RecuActivation(Quantizer):
    """ReCU's input (Xu et al., ICCV 2021): in training each sample b is divided by its deviation.

        q(x)_b = x_b / sqrt(var x_b + 1e-5)      in training, var unbiased over all dimensions but the first
               = x_b                             in eval mode

    No sign changes; what changes is which slope an estimator has there.

    Args:
        channels: not used.
    """

    name = "recu_activation"
    sides = frozenset({"activation"})
    keeps_signs = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training:
            return x
        wide = widen(x)
        _, variance = centred(wide)
        return (wide / (variance + 1e-5).sqrt()).to(x.dtype)


@final
@register_quantizer
class Shift(Quantizer):
    """ReActNet's RSign before its sign (Liu et al., ECCV 2020): each channel c has a threshold that is learned.

        q(x)_c = x_c + b_c,    b = 0 to begin with           sign(q(x)) = +1 where x_c >= -b_c

    The parameter has one dimension: it belongs to the role `bias` of the optimizer.

    Args:
        channels: C.
    """

    name = "shift"
    sides = frozenset({"activation"})

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (..., C) to the same shape and dtype."""
        # Rounding keeps the sign of the sum, which is taken at the precision of the shift.
        return (x + (self.shift[:, None, None] if x.dim() == 4 else self.shift)).to(x.dtype)
