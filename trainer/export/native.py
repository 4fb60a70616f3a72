"""A packed network on a CPU, fast: bits against bits where both are one bit, torch's operators elsewhere."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.export.bits import unpack_signs
from trainer.export.compiled import kernels
from trainer.export.packed import OPERATIONS, Operation, Packed, PackedNet
from trainer.export.steps import Step, Tensors

PRODUCTS, NUMBERS = 2**23, 2**16
"""What is worth a thread: products of a convolution, numbers of an affine map; some 20 microseconds each."""
_FINISHES: tuple[set[str], ...] = (set(), {"bias"}, {"multiplier", "bias"}, {"threshold", "above"})


class NativeNet(PackedNet):
    """Computes a packed network with compiled binary convolutions, on as many threads as torch.

    Called as `PackedNet` and giving the same numbers: sums are integers, and what follows them is rounded alike. A
    layer that the compiled convolution does not do (dilated, with a scale for each output, or with channels that fill
    no group of 4 in or 8 out) is computed as there.

    Raises:
        ConfigError: this machine cannot run or compile it; see `trainer.export.compiled.kernels`.
    """

    def __init__(self, packed: Packed) -> None:
        kernels()
        super().__init__(packed)

    def _prepare(self, step: Step, parts: Tensors) -> tuple[Operation, Tensors]:
        if step["op"] == "binary_conv2d" and _fits(step) and parts.get("scale", torch.ones(())).dim() == 0:
            weight = unpack_signs(parts.pop("bits"), tuple(step["weight_shape"]))
            scale = float(parts.pop("scale", torch.ones(())))
            conv = BinaryConv(weight, step["stride"], step["padding"], scale=scale, relu=step["relu"], parts=parts)
            return lambda _step, _parts, x, residual=None: conv(x, residual), {}
        operation, parts = super()._prepare(step, parts)
        if step["op"] == "affine" and len(parts["bias"]) % 8 == 0:
            return _affine, parts
        if step["op"] in ("mean", "adaptive_mean") and not self.facts.channels_last:
            # The order in which pixels are added is that of memory.
            return lambda step, parts, x: operation(step, parts, x.contiguous()), parts
        return operation, parts


def _fits(step: Step) -> bool:
    outputs, inputs, *_ = step["weight_shape"]
    products = torch.Size(step["weight_shape"][1:]).numel()
    return (
        step["sign_input"]
        and step["dilation"] == [1, 1]
        and inputs % 4 == 0
        and outputs % 8 == 0
        # Differing bits are counted in 16.
        and products < 2**16
    )


def arrange(weight: Tensor) -> Tensor:
    """The signs of a weight as the compiled convolution reads them.

    Args:
        weight: +-1, (O, I, H, W), I a multiple of 4.

    Returns:
        uint8 (blocks, H * W * I / 4, outputs of a block): for every block of output channels and every group of 4 input
        channels, which lie next to each other, numbers of 4 bits. A block has 32 outputs if there are no more, else 64;
        those that are not there are 0.
    """
    outputs = weight.shape[0]
    block = 32 if outputs <= 32 else 64
    negative = (weight < 0).permute(0, 2, 3, 1).reshape(outputs, -1, 4)
    nibbles = (negative * torch.tensor([1, 2, 4, 8])).sum(-1)
    table = torch.zeros((-(-outputs // block) * block, nibbles.shape[1]), dtype=torch.uint8)
    table[:outputs] = nibbles.to(torch.uint8)
    return table.view(-1, block, nibbles.shape[1]).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class _Plan:
    """What follows from the shape of the images alone."""

    shape: ctypes.Array[ctypes.c_int64]
    out: tuple[int, ...]
    scratch_bytes: int
    products: int


class BinaryConv:
    """Convolution of the signs of images with the signs of weights, and what is done to each sum.

    Args:
        weight: float (O, I, H, W); its signs count. I is a multiple of 4, O one of 8, I * H * W is below 2**16.
        stride, padding: (rows, columns) each; the padding is zeros.
        scale, relu: as in `trainer.export.fold`.
        parts: `multiplier` and `bias`, `bias` alone, or `threshold` and `above`, each (O); none by default.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        *,
        scale: float = 1.0,
        relu: bool = False,
        parts: Tensors | None = None,
    ) -> None:
        self._outputs, self._channels, *self._kernel = weight.shape
        self._stride, self._padding, self._scale, self._relu = stride, padding, scale, relu
        parts = {
            part: (t.int() if part == "threshold" else t.float()).contiguous() for part, t in (parts or {}).items()
        }
        if self._channels % 4 or self._outputs % 8 or any(t.shape != (self._outputs,) for t in parts.values()):
            raise ValueError(f"weights {tuple(weight.shape)} and their {', '.join(parts) or 'channels'} do not fit")
        if parts.keys() not in _FINISHES:
            raise ValueError(f"{', '.join(parts)} is not what a sum can be finished with")
        sides = all(len(pair) == 2 and max(pair) < 2**31 for pair in (stride, padding))
        if not sides or not 0 < weight[0].numel() < 2**16 or min(stride) < 1 or min(padding) < 0:
            raise ValueError(f"weights {tuple(weight.shape)}, stride {stride}, padding {padding} are out of range")
        self._table = arrange(weight)
        # The compiled code reads where these lie: they live as long as this does.
        self._parts = parts
        self._finish = [_address(parts.get(part)) for part in ("multiplier", "bias", "threshold", "above")]
        self._plans: dict[torch.Size, _Plan] = {}
        self._run = kernels().reste_binary_conv

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Images to what the layer makes of them.

        Args:
            x: float32 (B, I, H, W).
            residual: added to the result, and shaped like it.

        Returns:
            float32 (B, O, H', W') in channels_last order; whole numbers if scale, relu and parts were left out.

        Raises:
            ValueError: sizes that do not fit each other.
        """
        plan = self._plans.get(x.shape) or self._planned(x.shape)
        x = x.float().contiguous(memory_format=torch.channels_last)
        if residual is not None:
            if residual.shape != plan.out:
                raise ValueError(f"a residual of {tuple(residual.shape)} does not fit {plan.out}")
            residual = residual.float().contiguous(memory_format=torch.channels_last)
        out = torch.empty(plan.out, memory_format=torch.channels_last)
        scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8)
        self._run(
            x.data_ptr(),
            plan.shape,
            self._table.data_ptr(),
            scratch.data_ptr(),
            self._scale,
            self._relu,
            *self._finish,
            _address(residual),
            out.data_ptr(),
            _threads(plan.products, PRODUCTS),
        )
        return out

    def _planned(self, shape: torch.Size) -> _Plan:
        batch, channels, *sides = shape
        padded = [side + 2 * padding for side, padding in zip(sides, self._padding, strict=True)]
        out = [(padded[i] - self._kernel[i]) // self._stride[i] + 1 for i in (0, 1)]
        if channels != self._channels or min(out) < 1:
            raise ValueError(f"images {tuple(shape)} do not fit {self._channels} channels and a kernel {self._kernel}")
        told = (batch, *sides, channels, self._outputs, *self._kernel, *self._stride, *self._padding)
        pixels = batch * out[0] * out[1]
        plan = _Plan(
            shape=(ctypes.c_int64 * len(told))(*told),
            out=(batch, self._outputs, *out),
            scratch_bytes=batch * padded[0] * padded[1] * channels // 4,
            products=pixels * self._outputs * channels * self._kernel[0] * self._kernel[1],
        )
        return self._plans.setdefault(shape, plan)


def _affine(step: Step, parts: Tensors, x: Tensor) -> Tensor:
    if x.dim() != 4:
        return OPERATIONS["affine"](step, parts, x)
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    if any(parts[part].shape != (channels,) for part in ("multiplier", "bias")):
        raise ValueError(f"images {tuple(x.shape)} do not fit {len(parts['bias'])} channels")
    kernels().reste_affine(
        x.data_ptr(),
        batch * height * width,
        channels,
        step["relu"],
        parts["multiplier"].data_ptr(),
        parts["bias"].data_ptr(),
        out.data_ptr(),
        _threads(x.numel(), NUMBERS),
    )
    return out


def _threads(work: int, worthwhile: int) -> int:
    """As many as torch has, but none for less than what takes longer than to wake it."""
    return max(1, min(torch.get_num_threads(), work // worthwhile))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
