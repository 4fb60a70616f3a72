"""Which images a probe looks at."""

from __future__ import annotations

import pytest

from trainer.data.order import part
from trainer.probe import PROBE_IMAGES, probed_images


@pytest.mark.parametrize("micro_batch", [1, 2, 7, 31, 32, 33, 64, 750, 1000])
def test_the_same_few_images_are_probed_on_any_number_of_ranks(micro_batch: int) -> None:
    chosen = {}
    for world in (1, 2, 3, 8, 40):
        chosen[world] = []
        for rank in range(world):
            share = list(range(*part(0, micro_batch, rank, world)))
            chosen[world] += share[probed_images(micro_batch, rank, world)]
    assert all(ids == chosen[1] for ids in chosen.values())
    assert 0 < len(chosen[1]) <= PROBE_IMAGES
    assert len(chosen[1]) >= min(micro_batch, PROBE_IMAGES / 2)


def test_the_work_of_a_probe_is_spread_over_the_ranks() -> None:
    shares = [part(0, 750, rank, 8) for rank in range(8)]
    counts = [len(range(*share)[probed_images(750, rank, 8)]) for rank, share in enumerate(shares)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) > 16
