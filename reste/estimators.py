"""Estimators as modules: a sign, the options it was given, and the power it is at.

`Estimator` is the interface; each method is one final class around a function of `functional`. Where the
mathematics is wanted, read there. To add a method: one function, one class with `@register_estimator`, one
gradient twin in the tests. Here are the paper's own; `estimators_field` and `estimators_levels` have the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar, final

from torch import Tensor

from . import functional as F
from .buffers import Scheduled
from .curves import require_knee, require_power, require_threshold, reste_gain
from .functional import Zero, require_zero
from .names import Registry


class Estimator(Scheduled, ABC):
    """Turns a tensor into +-1, or a few other values, and says how gradients pass.

    Attributes:
        name: the registered name.
        has_power: whether the method has a power that a schedule drives.
        power: 0-d float32 buffer, only where `has_power`. Write it with `reste.set_power`.
    """

    name: ClassVar[str]
    has_power: ClassVar[bool]
    power: Tensor

    @property
    def values(self) -> tuple[float, ...]:
        """What the forward pass gives, in rising order; a sign of zero that `zero` asks for is left out."""
        return (-1.0, 1.0)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The sign of `x` (any shape), or another of `values`; its backward pass multiplies by the slope of `curve`."""

    def at_power(self, value: float) -> list[tuple[Tensor, float]]:
        """The buffers that follow the power, and what each holds at `value`; only where `has_power`."""
        return [(self.power, value)]

    def write_power(self, value: float) -> None:
        """Write the power in place; only where `has_power`. `value` is checked by `set_power`."""
        for buffer, held in self.at_power(value):
            buffer.fill_(held)

    @abstractmethod
    def curve(self, x: Tensor) -> Tensor:
        """The surrogate at `x` (any shape) in its dtype, differentiable: what the backward pass believes."""


E = TypeVar("E", bound=type[Estimator])
_REGISTRY: Registry[Estimator] = Registry("estimator")


def register_estimator(cls: E) -> E:
    """Class decorator: make an estimator available under `cls.name`.

    Raises:
        ValueError: the name is taken.
    """
    _REGISTRY.register(cls)
    return cls


def list_estimators() -> list[str]:
    """Names of all registered estimators, sorted."""
    return sorted(_REGISTRY.classes)


def create_estimator(name: str, /, **options: Any) -> Estimator:
    """Build a new estimator; one instance for each tensor that is binarised.

    Args:
        name: one of `list_estimators()`.
        **options: the keyword arguments of that estimator's class.

    Raises:
        ValueError: unknown name, unknown option, or an option out of range.
    """
    return _REGISTRY.create(name, **options)


def option_names(name: str) -> tuple[str, ...]:
    """The keyword arguments of an estimator's class.

    Raises:
        ValueError: unknown name.
    """
    return _REGISTRY.options(name)


@final
@register_estimator
class Reste(Estimator):
    """ReSTE: sign forward, slope of a power function backward; see `functional.reste_sign`.

        g(x) = m^((1-o)/o)          for |x| <= m
             = |x|^((1-o)/o) / o    for m < |x| <= t
             = 0                    for |x| > t

    The power o is a buffer, and so is the gain, which is written with it.

    Args:
        threshold: t > 0.
        knee: m, 0 < m <= t.
        power: o >= 1 to begin with.
        normalize: multiply the slope by `curves.reste_gain` of the power, so that gradients keep their size while
            its shape changes. False is the published slope.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "reste"
    has_power = True
    gain: Tensor

    def __init__(
        self,
        *,
        threshold: float = 1.5,
        knee: float = 0.1,
        power: float = 1.0,
        normalize: bool = False,
        zero: Zero = "one",
    ) -> None:
        super().__init__()
        require_knee(knee, threshold)
        require_power(power)
        require_zero(zero)
        self.threshold, self.knee, self.normalize, self.zero = threshold, knee, normalize, zero
        self.hold("power", 1.0)
        self.hold("gain", 1.0)
        self.write_power(power)

    def at_power(self, value: float) -> list[tuple[Tensor, float]]:
        gain = [(self.gain, reste_gain(value, self.threshold, self.knee))] if self.normalize else []
        return [*super().at_power(value), *gain]

    def forward(self, x: Tensor) -> Tensor:
        return F.reste_sign(x, self.power, self.threshold, self.knee, gain=self._gain, zero=self.zero)

    def curve(self, x: Tensor) -> Tensor:
        return F.reste_curve(x, self.power, self.threshold, self.knee, gain=self._gain)

    @property
    def _gain(self) -> Tensor | float:
        return self.gain if self.normalize else 1.0

    def extra_repr(self) -> str:
        shown = f"threshold={self.threshold}, knee={self.knee}, zero={self.zero!r}"
        return f"{shown}, normalize=True" if self.normalize else shown


@final
@register_estimator
class Ste(Estimator):
    """The clipped straight-through estimator; see `functional.ste_sign`.

        g(x) = 1  for |x| <= threshold, else 0

    Args:
        threshold: > 0.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "ste"
    has_power = False

    def __init__(self, *, threshold: float = 1.0, zero: Zero = "one") -> None:
        super().__init__()
        require_threshold(threshold)
        require_zero(zero)
        self.threshold, self.zero = threshold, zero

    def forward(self, x: Tensor) -> Tensor:
        return F.ste_sign(x, self.threshold, zero=self.zero)

    def curve(self, x: Tensor) -> Tensor:
        return F.ste_curve(x, self.threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, zero={self.zero!r}"


@final
@register_estimator
class Identity(Estimator):
    """The straight-through estimator without a clip: g(x) = 1; see `functional.identity_sign`.

    Args:
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: `zero` is neither.
    """

    name = "identity"
    has_power = False

    def __init__(self, *, zero: Zero = "one") -> None:
        super().__init__()
        require_zero(zero)
        self.zero = zero

    def forward(self, x: Tensor) -> Tensor:
        return F.identity_sign(x, zero=self.zero)

    def curve(self, x: Tensor) -> Tensor:
        return F.identity_curve(x)

    def extra_repr(self) -> str:
        return f"zero={self.zero!r}"


@final
@register_estimator
class ApproxSign(Estimator):
    """Bi-Real Net's ApproxSign: g(x) = 2 - 2|x| for |x| < 1, else 0; see `functional.approx_sign`.

    Args:
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: `zero` is neither.
    """

    name = "approx_sign"
    has_power = False

    def __init__(self, *, zero: Zero = "one") -> None:
        super().__init__()
        require_zero(zero)
        self.zero = zero

    def forward(self, x: Tensor) -> Tensor:
        return F.approx_sign(x, zero=self.zero)

    def curve(self, x: Tensor) -> Tensor:
        return F.approx_curve(x)

    def extra_repr(self) -> str:
        return f"zero={self.zero!r}"
