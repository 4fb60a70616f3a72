"""The field's other estimators as modules; their mathematics is in `curves_field` and `levels`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from . import curves_field as C
from .estimators import Estimator, register_estimator
from .functional import Zero, require_zero
from .functional_field import Argument, dsq_sign, surrogate_sign


class Surrogate(Estimator):
    """A sign with the slope of a curve; a subclass names the two and says what they take beside x.

    Args:
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    has_power = False
    of_curve: ClassVar[Callable[..., Tensor]]
    of_slope: ClassVar[Callable[..., Tensor]]

    def __init__(self, *, zero: Zero = "one") -> None:
        super().__init__()
        require_zero(zero)
        self.zero = zero

    def _arguments(self) -> tuple[Argument, ...]:
        return ()

    def forward(self, x: Tensor) -> Tensor:
        return surrogate_sign(x, type(self).of_slope, *self._arguments(), zero=self.zero)

    def curve(self, x: Tensor) -> Tensor:
        return type(self).of_curve(x, *self._arguments())

    def extra_repr(self) -> str:
        return f"zero={self.zero!r}"


@final
@register_estimator
class Tanh(Surrogate):
    """The hyperbolic tangent: g(x) = c (1 - tanh(c x)^2).

    Args:
        scale: c > 0; larger is steeper at 0 and nearer to sign.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "tanh"
    of_curve, of_slope = staticmethod(C.tanh_curve), staticmethod(C.tanh_slope)

    def __init__(self, *, scale: float = 1.0, zero: Zero = "one") -> None:
        super().__init__(zero=zero)
        self.scale = _positive("scale", scale)

    def _arguments(self) -> tuple[Argument, ...]:
        return (self.scale,)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, {super().extra_repr()}"


@final
@register_estimator
class Ede(Surrogate):
    """The error decay estimator of IR-Net (Qin et al., CVPR 2020): g(x) = k t (1 - tanh(t x)^2).

        t(p) = t_min (t_max / t_min)^p,    k(p) = max(1 / t(p), 1)        p: share of training done

    At first nearly the identity, at the end nearly sign. t and k are 0-d float32 buffers written in place.

    Args:
        t_min: t to begin with, > 0.
        t_max: t at the end, >= t_min.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "ede"
    of_curve, of_slope = staticmethod(C.ede_curve), staticmethod(C.ede_slope)
    t: Tensor
    k: Tensor

    def __init__(self, *, t_min: float = 0.1, t_max: float = 10.0, zero: Zero = "one") -> None:
        super().__init__(zero=zero)
        self.t_min, self.t_max = _positive("t_min", t_min), _positive("t_max", t_max)
        if t_max < t_min or t_min < 1e-30:
            raise ValueError(f"t_min must be >= 1e-30 and t_max >= t_min, got t_min {t_min}, t_max {t_max}")
        self.hold("t", 1.0)
        self.hold("k", 1.0)
        self.write_progress(0.0)

    def write_progress(self, progress: float) -> None:
        """See `Scheduled`."""
        t = self.t_min * (self.t_max / self.t_min) ** progress
        self.t.fill_(t)
        self.k.fill_(max(1 / t, 1.0))

    def _arguments(self) -> tuple[Argument, ...]:
        return self.t, self.k

    def extra_repr(self) -> str:
        return f"t_min={self.t_min}, t_max={self.t_max}, {super().extra_repr()}"


@final
@register_estimator
class SwishSign(Surrogate):
    """SwishSign (Darabi et al. 2018): g(x) = b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)), below 0 for |b x| > 2.4.

    Args:
        beta: b > 0; the slope at 0.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "swish_sign"
    of_curve, of_slope = staticmethod(C.swish_curve), staticmethod(C.swish_slope)

    def __init__(self, *, beta: float = 5.0, zero: Zero = "one") -> None:
        super().__init__(zero=zero)
        self.beta = _positive("beta", beta)

    def _arguments(self) -> tuple[Argument, ...]:
        return (self.beta,)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, {super().extra_repr()}"


@final
@register_estimator
class Fda(Surrogate):
    """Frequency domain approximation (Xu et al., NeurIPS 2021): the first terms of a square wave's Fourier series.

        g(x) = 4w/pi sum_{i<n} cos((2i+1) w x)  for |x| <= 1, else 0
        n(p) = terms + floor((last_terms - terms) p)        p: share of training done

    n is a 0-d float32 buffer written in place. The paper's noise adaptation network is no part of this.

    Args:
        omega: w > 0; the wave's half period is pi / w.
        terms: n to begin with, >= 1.
        last_terms: n at the end, >= `terms`. With w = 0.1 and 19 the slope is below 0 for |x| > 0.83.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "fda"
    of_curve, of_slope = staticmethod(C.fourier_curve), staticmethod(C.fourier_slope)
    n: Tensor

    def __init__(self, *, omega: float = 0.1, terms: int = 10, last_terms: int = 19, zero: Zero = "one") -> None:
        super().__init__(zero=zero)
        if not 1 <= terms <= last_terms <= 1000:
            raise ValueError(f"terms must be from 1 to last_terms (1000 at most), got {terms} and {last_terms}")
        if not 0 < omega < math.pi:
            raise ValueError(f"omega must be > 0 and below pi, got {omega}")
        self.omega, self.terms, self.last_terms = omega, terms, last_terms
        self.hold("n", 1.0)
        self.write_progress(0.0)

    def write_progress(self, progress: float) -> None:
        """See `Scheduled`."""
        self.n.fill_(self.terms + math.floor((self.last_terms - self.terms) * progress))

    def _arguments(self) -> tuple[Argument, ...]:
        return self.n, self.omega

    def curve(self, x: Tensor) -> Tensor:
        return C.fourier_curve(x, self.n, self.omega, self.last_terms)

    def extra_repr(self) -> str:
        return f"omega={self.omega}, terms={self.terms}, last_terms={self.last_terms}, {super().extra_repr()}"


@final
@register_estimator
class Dsq(Surrogate):
    """Differentiable soft quantisation at one bit (Gong et al., ICCV 2019): the sign behind s tanh(k x) on [-1, 1].

        g(x) = s k (1 - tanh(k x)^2)  for |x| <= 1, else 0        s = 1 / (1 - a),  k = ln(2/a - 1) / 2

    Args:
        alpha: a, 0 < a < 1: how far the soft step stays from +-1 at the ends before s; smaller is nearer to sign.
        learn: a moves with training: a parameter (1,) holds log k, which keeps a between 0 and 1.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "dsq"

    def __init__(self, *, alpha: float = 0.2, learn: bool = False, zero: Zero = "one") -> None:
        super().__init__(zero=zero)
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be > 0 and < 1, got {alpha}")
        self.alpha, self.learn = alpha, learn
        k = math.log(2 / alpha - 1) / 2
        self.log_k = nn.Parameter(torch.full((1,), math.log(k))) if learn else None
        self.fixed_k = k

    @property
    def k(self) -> Argument:
        """How steep the soft step is: a number, or a 0-d tensor that is learnt."""
        return self.fixed_k if self.log_k is None else self.log_k.exp().squeeze(0)

    def forward(self, x: Tensor) -> Tensor:
        return dsq_sign(x, self.k, zero=self.zero)

    def curve(self, x: Tensor) -> Tensor:
        return C.dsq_curve(x, self.k)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, learn={self.learn}, {super().extra_repr()}"


@final
@register_estimator
class ReluSte(Surrogate):
    """The derivative of ReLU: g(x) = 1 for x > 0, else 0 (Yin et al., ICLR 2019, for an activation of 0 and 1)."""

    name = "relu_ste"
    of_curve, of_slope = staticmethod(C.relu_curve), staticmethod(C.relu_slope)


@final
@register_estimator
class ClippedReluSte(Surrogate):
    """The derivative of clipped ReLU: g(x) = 1 for 0 < x < 1, else 0 (Yin et al., ICLR 2019; as `relu_ste`)."""

    name = "clipped_relu_ste"
    of_curve, of_slope = staticmethod(C.unit_curve), staticmethod(C.unit_slope)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be > 0, got {value}")
    return value
