"""Random numbers that are a function of where they are used, and of nothing that happened before.

A number belongs to (key, row, element): the key stands for seed, step and layer, a row for one sample or one output
channel, and elements are counted along a row. So a sample's noise is the same on any number of ranks, in any
micro-batch and after a resume, and a compiled graph draws what eager mode draws.

A word is 32 bits in an int64, mixed by shifts and by products with odd constants below 2^31, so that nothing overflows
on any device. The constants of `mix` are a published pair found by search for a small avalanche bias (hash-prospector,
C. Wellons 2018 and contributors).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words, in int64 of any shape, in which each bit depends on every bit of the argument."""
    word = word ^ (word >> 16)
    word = (word * 0x21F0AAAD) & _WORD
    word = word ^ (word >> 15)
    word = (word * 0x735A2D97) & _WORD
    return word ^ (word >> 15)


def key_of(*parts: int) -> int:
    """One 62-bit key from integers, on the host: the same mixing, twice side by side, part by part.

    Args:
        *parts: integers of any size; negative ones count by their absolute value and sign.
    """
    low, high = 0x243F6A88, 0x85A308D3
    for part in parts:
        words = [part < 0, *((abs(part) >> shift) & _WORD for shift in range(0, max(abs(part).bit_length(), 1), 32))]
        for word in (len(words), *words):
            low = _mixed(low ^ int(word))
            high = _mixed(high ^ _mixed(low ^ 0x13198A2E))
    return (high << 32 | low) & (2**62 - 1)


def _mixed(word: int) -> int:
    word ^= word >> 16
    word = word * 0x21F0AAAD & _WORD
    word ^= word >> 15
    word = word * 0x735A2D97 & _WORD
    return word ^ word >> 15


@torch.library.custom_op("reste::row_words", mutates_args=())
def row_words(key: Tensor, rows: Tensor) -> Tensor:
    """Two words for each row: 0-d and (N,) int64 to (2, N). A compiler takes them as they are.

    Each mixing uses its argument twice at three places, which a compiler that puts expressions into each other would
    write out 2^3 times for each that is nested; two, for the elements, are few enough.
    """
    first = mix(mix(mix((rows & _WORD) ^ (key & _WORD)) ^ (rows >> 32)) ^ (key >> 32))
    return torch.stack([first, mix(first ^ 0x03707344 ^ (key >> 32))])


@row_words.register_fake
def _(key: Tensor, rows: Tensor) -> Tensor:
    return rows.new_empty((2, rows.shape[0]))


def uniform(key: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Independent numbers, uniform on 2^23 evenly spaced points of (0, 1), symmetric about 1/2.

    Args:
        key: 0-d int64, from `key_of`.
        rows: int64 (N,), what each row is called: ids of samples, or numbers of channels; >= 0.
        shape: (N, ...); elements are numbered in its logical order, whatever the layout in memory.

    Returns:
        float32 of that shape, on the device of `rows`.
    """
    count = math.prod(shape[1:])
    first, second = row_words(key, rows)
    element = torch.arange(count, device=rows.device)
    words = mix(mix(element ^ first[:, None]) ^ second[:, None])
    # 23 bits and a half have room in float32; with 24 the largest would be rounded to 1.
    return (((words >> 9).float() + 0.5) * 2.0**-23).view(shape)
