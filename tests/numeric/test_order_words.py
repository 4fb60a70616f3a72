"""The random words against Philox written out by hand, and what is made of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from trainer.data.counter import random_words, to_integer, to_unit
from trainer.data.order import permutation

MASK = 2**64 - 1


def philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, section 3.3, with the constants of their table."""
    x, k = list(counter), list(key)
    for _ in range(10):
        first, second = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [(second >> 64) ^ x[1] ^ k[0], second & MASK, (first >> 64) ^ x[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return x


@pytest.mark.parametrize(
    ("seed", "stream", "epoch", "start"), [(0, 0, 0, 0), (1234, 1, 7, 5), (2**64 - 1, 2, 249, 10**9)]
)
def test_words_are_philox_blocks_of_their_row(seed: int, stream: int, epoch: int, start: int) -> None:
    words = random_words(seed, stream, epoch, start=start, rows=3, width=8)
    for row in range(3):
        block = (start + row) * 2 + 1  # the generator counts up before it makes a block
        key = [seed, (stream << 32) + epoch]
        expected = philox_4x64_10([block, 0, 0, 0], key) + philox_4x64_10([block + 1, 0, 0, 0], key)
        assert words[row].tolist() == expected


def test_rows_do_not_depend_on_where_the_drawing_began() -> None:
    table = random_words(5, 1, 2, start=0, rows=40, width=24)
    np.testing.assert_array_equal(random_words(5, 1, 2, start=17, rows=9, width=24), table[17:26])


def test_seeds_streams_and_epochs_give_other_words() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    firsts = {int(random_words(*key, start=0, rows=1, width=4)[0, 0]) for key in keys}
    assert len(firsts) == 4


def test_units_and_integers_stay_below_their_bound() -> None:
    extremes = np.array([0, MASK], dtype=np.uint64)
    assert to_unit(extremes).tolist() == [0.0, 1.0 - 2.0**-53]
    assert to_integer(extremes, 7).tolist() == [0, 6]


def test_permutation_sorts_one_word_per_sample() -> None:
    n = 1001
    words = [philox_4x64_10([1 + i // 4, 0, 0, 0], [9, 3])[i % 4] for i in range(n)]
    assert permutation(9, 3, n).tolist() == sorted(range(n), key=lambda i: words[i])


def test_permutation_is_the_one_of_the_first_release() -> None:
    digest = hashlib.sha256(permutation(1234, 3, 100_000).astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "8c94a11f189a7e99"


def test_permutation_holds_every_sample_once_and_changes_with_epoch_and_seed() -> None:
    orders = [permutation(seed, epoch, 500) for seed, epoch in [(1, 0), (1, 1), (2, 0)]]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(500))
    assert len({order.tobytes() for order in orders}) == 3
