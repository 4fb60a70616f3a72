"""Counter-based random words: any word of any stream is reached without drawing those before it.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Only the raw 64-bit
words are used: NumPy promises those for ever, whereas what it makes of them (`permutation`, `uniform`) may
change between versions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WORDS_PER_BLOCK = 4
STREAM_ORDER = 0
STREAM_SAMPLE = 1
STREAM_PIXELS = 2
STREAM_STAND_IN = 3

Words = npt.NDArray[np.uint64]


def random_words(seed: int, stream: int, epoch: int, *, start: int, rows: int, width: int) -> Words:
    """Rows `start` to `start + rows` of the table of words that belongs to (seed, stream, epoch).

    Args:
        seed: the run's seed; taken modulo 2**64.
        stream: which purpose the words serve, one of the `STREAM_*` numbers.
        epoch: 0-based epoch.
        start: first row wanted.
        rows: number of rows wanted.
        width: words per row; a multiple of 4, so that every row begins a block.

    Returns:
        uint64 array of shape (rows, width).
    """
    assert width % WORDS_PER_BLOCK == 0, "rows must begin at a block"
    key = np.array([seed % 2**64, (stream << 32) + epoch], dtype=np.uint64)
    counter = np.array([start * (width // WORDS_PER_BLOCK), 0, 0, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(rows * width).reshape(rows, width)


def to_unit(words: Words) -> npt.NDArray[np.float64]:
    """The upper 53 bits of each word as a float64 in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_integer(words: Words, bound: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
    """Each word as an integer in [0, bound), for bounds far below 2**53."""
    return (to_unit(words) * bound).astype(np.int64)
