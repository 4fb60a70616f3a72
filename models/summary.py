"""What a model costs: parameters, memory and multiply-accumulates, split by precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from reste import BinaryConv2d, BinaryLinear


@dataclass(frozen=True)
class LayerSummary:
    """One module that owns parameters.

    Attributes:
        name: dotted path in the model.
        kind: class name.
        weight_bits: 1 or 32.
        activation_bits: bits of what enters the layer, 1 or 32.
        output_shape: for one image, without the batch dimension; () if the layer did not run.
        parameters: all of its own.
        binary_parameters: those deployed as one bit.
        scale_parameters: float32 numbers stored beside binary weights; a learned scale is a row of its own.
        macs: multiply-accumulates for one image (convolution and linear; others count as 0).
    """

    name: str
    kind: str
    weight_bits: int
    activation_bits: int
    output_shape: tuple[int, ...]
    parameters: int
    binary_parameters: int
    scale_parameters: int
    macs: int

    @property
    def macs_1bit(self) -> int:
        """Those done by XNOR and popcount: both factors have one bit."""
        return self.macs if self.weight_bits == self.activation_bits == 1 else 0

    @property
    def macs_32bit(self) -> int:
        """All others. Binary weights alone save memory and multiplications, but need float additions."""
        return self.macs - self.macs_1bit

    @property
    def deployed_bits(self) -> int:
        """One bit for a binary weight, 32 for every other parameter and for the scale of a binary layer."""
        wide = self.parameters - self.binary_parameters + self.scale_parameters
        return self.binary_parameters + 32 * wide


@dataclass(frozen=True)
class ModelSummary:
    """Rows in the order of `model.named_modules()`, and their totals.

    Batch norm counts two numbers a channel: deployed, its running statistics fold into weight and bias.
    """

    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(row.parameters for row in self.layers)

    @property
    def binary_parameters(self) -> int:
        """Parameters deployed as one bit."""
        return sum(row.binary_parameters for row in self.layers)

    @property
    def deployed_bits(self) -> int:
        """Memory of the deployed model, in bits."""
        return sum(row.deployed_bits for row in self.layers)

    @property
    def macs_1bit(self) -> int:
        """XNOR-popcount multiply-accumulates for one image."""
        return sum(row.macs_1bit for row in self.layers)

    @property
    def macs_32bit(self) -> int:
        """Float multiply-accumulates for one image."""
        return sum(row.macs_32bit for row in self.layers)

    @property
    def operations(self) -> float:
        """The field's cost measure, 32-bit MACs + 1-bit MACs / 64 (Liu et al., Bi-Real Net, ECCV 2018)."""
        return self.macs_32bit + self.macs_1bit / 64


def summarize(model: nn.Module, image_size: int, in_chans: int = 3) -> ModelSummary:
    """Measure `model` on one image of `image_size` x `image_size` pixels, without computing anything.

    The forward runs on the meta device in a copy; `model` itself is neither run nor changed.

    Args:
        model: any module that maps (B, in_chans, H, W) to a tensor.
        image_size: pixels along a side.
        in_chans: channels of the image.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    layers = {name: m for name, m in twin.named_modules() if any(True for _ in m.parameters(recurse=False))}
    image = torch.empty(1, in_chans, image_size, image_size, device="meta", dtype=next(twin.parameters()).dtype)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(_recorder(shapes, name))
    with torch.no_grad():
        twin(image)
    return ModelSummary(tuple(_row(name, layer, shapes.get(name, ())) for name, layer in layers.items()))


def _recorder(shapes: dict[str, tuple[int, ...]], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    return record


def _row(name: str, layer: nn.Module, output_shape: tuple[int, ...]) -> LayerSummary:
    binary = isinstance(layer, BinaryConv2d | BinaryLinear)
    weight_bits = layer.weight_bits if binary else 32
    multiplies = bool(output_shape) and isinstance(layer, nn.Conv2d | nn.Linear)
    return LayerSummary(
        name=name,
        kind=type(layer).__name__,
        weight_bits=weight_bits,
        activation_bits=layer.activation_bits if binary else 32,
        output_shape=output_shape,
        parameters=sum(p.numel() for p in layer.parameters(recurse=False)),
        binary_parameters=layer.weight.numel() if weight_bits == 1 else 0,
        scale_parameters=_scales(layer) if weight_bits == 1 else 0,
        macs=layer.weight[0].numel() * prod(output_shape) if multiplies else 0,
    )


def _scales(layer: BinaryConv2d | BinaryLinear) -> int:
    """How many numbers its weight is multiplied with, of those that are no parameters."""
    if layer.scale == "none" or layer.scaling is None or layer.scaling.name == "none":
        return 0
    if any(True for _ in layer.scaling.parameters()):
        return 0
    return layer.weight.shape[0] if layer.scaling.per_channel else 1
