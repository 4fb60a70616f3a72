"""How a network is binarised, in the words of `timm.create_model`, and the convolutions that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from reste import (
    BinaryConv2d,
    Estimator,
    Quantizer,
    create_estimator,
    create_quantizer,
    create_scaling,
    list_quantizers,
)
from reste.functional import Zero
from reste.layers import Scale

NUMERICS: dict[str, tuple[Zero, Scale]] = {"default": ("one", "after"), "reference": ("zero", "before")}
"""Name -> (the value of sign(0), where the weight scale enters: after the convolution or before it)."""


class ConvMaker(Protocol):
    """Makes one of a network's binary convolutions: zero padding (kernel_size - 1) / 2 and no bias."""

    def __call__(self, in_channels: int, out_channels: int, stride: int, kernel_size: int = 3) -> nn.Module:
        """A convolution with parts of its own: no two share an estimator or a quantiser."""


@dataclass(frozen=True)
class Binarization:
    """What a family is told about signs, so that no model and no layer sees a name; called, it is a `ConvMaker`.

    None leaves a choice to the family, and where that has none, to the value in brackets.

    Attributes:
        estimator: gradient estimator of weights and activations ["reste"].
        estimator_options: its options.
        weight_estimator: another one for weights [the same].
        weight_estimator_options: its options; used with `weight_estimator` only.
        weight_quantizer: what is done to a weight before its sign ["none"]; see `reste.list_quantizers`.
        activation_quantizer: the same for the input.
        quantizer_options: options of quantisers, by quantiser.
        scaling: what multiplies the signs of the weights ["layer"]; see `reste.list_scalings`.
        scaling_options: its options.
        weight_bits: 1 (binary) or 32 (full precision).
        activation_bits: 1 (binary) or 32 (full precision).
        numerics: "default", or "reference" for the arithmetic of the official code: sign(0) = 0 and the scale
            multiplied into the weights before the convolution.

    Raises:
        ValueError: an unknown name, option, number of bits or numerics.
    """

    estimator: str | None = None
    estimator_options: Mapping[str, Any] | None = None
    weight_estimator: str | None = None
    weight_estimator_options: Mapping[str, Any] | None = None
    weight_quantizer: str | None = None
    activation_quantizer: str | None = None
    quantizer_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scaling: str | None = None
    scaling_options: Mapping[str, Any] = field(default_factory=dict)
    weight_bits: int = 1
    activation_bits: int = 1
    numerics: str = "default"

    def __post_init__(self) -> None:
        for side, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if bits not in (1, 32):
                raise ValueError(f"{side}={bits!r} is not available: use 1 (binary) or 32 (full precision)")
        if self.numerics not in NUMERICS:
            raise ValueError(f"numerics={self.numerics!r} is not available: use one of {', '.join(NUMERICS)}")

    def __call__(self, in_channels: int, out_channels: int, stride: int, kernel_size: int = 3) -> nn.Module:
        """See `ConvMaker`."""
        return BinaryConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=False,
            weight_estimator=self._for_weight(),
            activation_estimator=self._for_activation(),
            weight_quantizer=self._quantizer("weight", self.weight_quantizer, out_channels, self.weight_bits),
            activation_quantizer=self._quantizer(
                "activation", self.activation_quantizer, in_channels, self.activation_bits
            ),
            scale=NUMERICS[self.numerics][1],
            scaling=create_scaling(self.scaling or "layer", out_channels, **self.scaling_options),
        )

    def _for_activation(self) -> Estimator | None:
        return self._estimator(self.estimator, self.estimator_options) if self.activation_bits == 1 else None

    def _for_weight(self) -> Estimator | None:
        if self.weight_bits != 1:
            return None
        if self.weight_estimator is None:
            made = self._estimator(self.estimator, self.estimator_options)
        else:
            made = self._estimator(self.weight_estimator, self.weight_estimator_options)
        if min(made.values) >= 0:
            raise ValueError(f"{made.name} has no negative value, which weights need: give them another, such as ste")
        return made

    def _estimator(self, name: str | None, options: Mapping[str, Any] | None) -> Estimator:
        return create_estimator(name or "reste", **{"zero": NUMERICS[self.numerics][0], **(options or {})})

    def _quantizer(self, side: str, name: str | None, channels: int, bits: int) -> Quantizer | None:
        if name is None or name == "none":
            return None
        made = create_quantizer(name, channels, **self.quantizer_options.get(name, {}))
        if side not in made.sides:
            fitting = ", ".join(list_quantizers(side))
            raise ValueError(f"quantizer {name!r} cannot be put on the {side}: use {fitting} or none")
        return made if bits == 1 else None
