"""The rank that the others wait for, on three real ranks with times made up."""

from __future__ import annotations

import logging

import pytest
from spawn import run_ranks

from trainer.distributed import collectives
from trainer.distributed.links import judge, rounds
from trainer.feed import Pace
from trainer.stragglers import Stragglers


def watch(windows: list[list[tuple[float, float]]]) -> tuple[list[dict[str, float]], list[str]]:
    """Metrics and warnings on this rank; `windows` holds every rank's (data, forward) seconds of ten steps of 1 s."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trainer.stragglers").addHandler(handler)
    stragglers = Stragglers(["a", "b", "c"], 1)
    metrics = []
    for times in windows:
        data_s, forward_s = times[collectives.rank()]
        metrics.append(stragglers.observe(Pace(10.0, data_s, forward_s, 480, 10)))
    return metrics, said


def test_a_slow_rank_is_named_once_with_what_takes_it_long() -> None:
    usual = [(0.1, 3.0), (0.1, 3.1), (0.1, 2.9)]
    starved = [(0.1, 3.0), (0.1, 3.1), (2.0, 2.9)]
    noise = [(0.1, 3.0), (0.3, 3.1), (0.1, 2.9)]  # three times as much, and nothing to anybody
    windows = [usual, starved, starved, usual, starved, starved, starved, starved, noise, noise, noise]
    for metrics, said in run_ranks(watch, 3, windows):
        assert said == [
            "rank 2 on c holds the others up: waiting for data takes it 0.2 s a step, the median rank 0.01 s"
        ]
        assert metrics[1].pop("perf/slowest_link_s") > 0
        assert metrics[1] == {"perf/slowest_rank": 2, "perf/slowest_ratio": 4.9 / 3.2}
        assert metrics[0]["perf/slowest_rank"] == 1


def test_one_rank_alone_is_not_compared() -> None:
    assert Stragglers(["a"], 1).observe(Pace(10.0, 5.0, 5.0, 480, 10)) == {}


@pytest.mark.parametrize("world", [2, 3, 4, 5, 8, 9])
def test_every_rank_is_paired_with_both_of_its_neighbours_and_with_nobody_twice_at_once(world: int) -> None:
    for pairs in rounds(world):
        assert all(pairs[other] == rank for rank, other in pairs.items())
    for rank in range(world):
        met = [pairs[rank] for pairs in rounds(world) if rank in pairs]
        assert sorted(met) == sorted([(rank - 1) % world, (rank + 1) % world])


@pytest.mark.parametrize("world", [3, 4, 5, 8])
def test_a_rank_that_cannot_send_has_the_slow_link_and_its_neighbours_have_not(world: int) -> None:
    for slow in range(world):
        # Its partners wait for what it sends; it has theirs at once.
        times = [[0.2 if pairs.get(rank) == slow else 0.001 for pairs in rounds(world)] for rank in range(world)]
        assert judge(times) == [0.2 if rank == slow else 0.001 for rank in range(world)]
