"""Signs as bits: 64 to a word, along the input of the dot product."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_signs(weight: Tensor) -> Tensor:
    """The signs of a weight, one bit each; a negative number is 1, any other 0, as `reste.binary_sign` has it.

    The products of one output are numbered pixel by pixel, k = (row * columns + column) * I + channel, and product k is
    bit k % 64, counted from the lowest, of word k // 64. The bits behind the last product are 0.

    Args:
        weight: (O, I, H, W) or (O, I).

    Returns:
        int64 (O, ceil(K / 64)), K products to an output.
    """
    outputs = weight.shape[0]
    negative = (weight < 0).movedim(1, -1).reshape(outputs, -1)
    words = -(-negative.shape[1] // 64)
    bits = torch.zeros((outputs, words * 64), dtype=torch.int64, device=weight.device)
    bits[:, : negative.shape[1]] = negative
    # Bit 63 is the sign of an int64: the sum wraps, and so is right.
    return (bits.view(outputs, words, 64) << torch.arange(64, device=weight.device)).sum(-1)


def unpack_signs(words: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The +-1 that `pack_signs` packed, float32 of the weight's `shape`, (O, I, H, W) or (O, I)."""
    outputs, inputs, *kernel = shape
    bits = (words[:, :, None] >> torch.arange(64, device=words.device)) & 1
    products = bits.view(outputs, -1)[:, : torch.Size(shape[1:]).numel()]
    return (1 - 2 * products).float().view(outputs, *kernel, inputs).movedim(-1, 1).contiguous()
