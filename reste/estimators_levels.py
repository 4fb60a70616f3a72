"""ReSTE's relatives as modules: a power function without a power, and outputs of more values than two."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

from torch import Tensor

from . import curves_field as C
from .curves import require_knee, require_power, require_threshold
from .estimators import Estimator, register_estimator
from .estimators_field import Surrogate
from .functional import Zero, require_zero
from .functional_field import Argument
from .levels import heaviside, levels_curve, levels_gain, require_levels, reste_levels, ternary_duo


@final
@register_estimator
class Rational(Surrogate):
    """ReSTE's power function as a fraction: g(x) = o / (1 + (o-1) |x|)^2 for |x| <= t, else 0.

    At 0 the slope is o, at 1 it is 1/o as ReSTE's; no knee. The power is a buffer as in `Reste`.

    Args:
        threshold: t > 0.
        power: o >= 1 to begin with.
        zero: value of sign(0), "one" or "zero".

    Raises:
        ValueError: an option out of its range.
    """

    name = "rational"
    has_power = True
    of_curve, of_slope = staticmethod(C.rational_curve), staticmethod(C.rational_slope)

    def __init__(self, *, threshold: float = 1.5, power: float = 1.0, zero: Zero = "one") -> None:
        super().__init__(zero=zero)
        require_threshold(threshold)
        require_power(power)
        self.threshold = threshold
        self.hold("power", 1.0)
        self.write_power(power)

    def _arguments(self) -> tuple[Argument, ...]:
        return self.power, self.threshold

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, {super().extra_repr()}"


@final
@register_estimator
class ResteLevels(Estimator):
    """ReSTE for n values on [-1, 1]: a power segment around each threshold; see `levels`.

    levels=3 is ternary {-1, 0, 1}, levels=2^k is k bits, levels=2 is `Reste` bit for bit. Weights come to inner levels
    only if they are spread over [-1, 1]: put a quantiser that standardises them in front.

    Args:
        levels: n, from 2 to 256.
        threshold: t > 0, where the outermost slopes end; in units of half the distance of two levels.
        knee: m, 0 < m <= t; in the same units.
        power: o >= 1 to begin with.
        normalize: multiply the slope by `levels.levels_gain` of the power.
        zero: what a tie between two values gives, "one" the upper, "zero" their mean.

    Raises:
        ValueError: an option out of its range.
    """

    name = "reste_levels"
    has_power = True
    gain: Tensor

    def __init__(
        self,
        *,
        levels: int = 3,
        threshold: float = 1.5,
        knee: float = 0.1,
        power: float = 1.0,
        normalize: bool = False,
        zero: Zero = "one",
    ) -> None:
        super().__init__()
        require_levels(levels)
        require_knee(knee, threshold)
        require_power(power)
        require_zero(zero)
        self.levels, self.threshold, self.knee, self.normalize, self.zero = levels, threshold, knee, normalize, zero
        self.hold("power", 1.0)
        self.hold("gain", 1.0)
        self.write_power(power)

    @property
    def values(self) -> tuple[float, ...]:
        return tuple((2 * k - (self.levels - 1)) / (self.levels - 1) for k in range(self.levels))

    def at_power(self, value: float) -> list[tuple[Tensor, float]]:
        gain = levels_gain(value, self.levels, self.threshold, self.knee)
        return [*super().at_power(value), *([(self.gain, gain)] if self.normalize else [])]

    def forward(self, x: Tensor) -> Tensor:
        return reste_levels(x, self.power, self.levels, self.threshold, self.knee, gain=self._gain, zero=self.zero)

    def curve(self, x: Tensor) -> Tensor:
        return levels_curve(x, self.power, self.threshold, self.knee, self._gain, levels=self.levels)

    @property
    def _gain(self) -> Argument:
        return self.gain if self.normalize else 1.0

    def extra_repr(self) -> str:
        shown = f"levels={self.levels}, threshold={self.threshold}, knee={self.knee}, zero={self.zero!r}"
        return f"{shown}, normalize=True" if self.normalize else shown


class _OnTheUnitInterval(Estimator):
    """Values on [0, 1] whose slope is that of clamp(x, 0, 1).

    Args:
        zero: what a tie between two values gives, "one" the upper, "zero" their mean.

    Raises:
        ValueError: `zero` is neither.
    """

    has_power = False

    def __init__(self, *, zero: Zero = "one") -> None:
        super().__init__()
        require_zero(zero)
        self.zero = zero

    @property
    @abstractmethod
    def values(self) -> tuple[float, ...]:
        """See the class."""

    def curve(self, x: Tensor) -> Tensor:
        return C.unit_curve(x)

    def extra_repr(self) -> str:
        return f"zero={self.zero!r}"


@final
@register_estimator
class Heaviside(_OnTheUnitInterval):
    """One bit as {0, 1}, threshold 1/2, g(x) = 1 on (0, 1); see `levels.heaviside`."""

    name = "heaviside"
    values = (0.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return heaviside(x, zero=self.zero)


@final
@register_estimator
class TernaryDuo(_OnTheUnitInterval):
    """BinaryDuo's activation {0, 1/2, 1}, thresholds 1/4 and 3/4, g(x) = 1 on (0, 1); see `levels.ternary_duo`."""

    name = "ternary_duo"
    values = (0.0, 0.5, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return ternary_duo(x, zero=self.zero)
