"""How fast each rank's link to the others is, from exchanges between pairs."""

from __future__ import annotations

import math
import time

import torch
import torch.distributed as dist

from trainer.distributed import collectives

PROBE_BYTES = 1 << 18


def rounds(world: int) -> list[dict[int, int]]:
    """Who exchanges with whom in each round; every rank has both of its neighbours.

    Two rounds do for an even number of ranks: (0 1)(2 3)... and (1 2)(3 4)...(n-1 0). An odd number takes a third,
    for the pair that closes the ring. In a world of two both rounds have the same pair.
    """
    found: list[dict[int, int]] = [{}, {}, {}]
    for first in range(world):
        second = (first + 1) % world
        number = 2 if world % 2 and first == world - 1 else first % 2
        found[number] |= {first: second, second: first}
    return [pairs for pairs in found if pairs]


def links_s() -> list[float]:
    """Seconds that each rank takes to swap 256 KiB of the host's memory with a neighbour; a collective.

    The faster of two neighbours: who is slow with both has a slow link, who is slow with one has a slow neighbour.
    """
    mine = torch.zeros(PROBE_BYTES, dtype=torch.uint8)
    theirs = torch.empty_like(mine)
    times = []
    for pairs in rounds(collectives.world_size()):
        # A pair whose members have just been held up by others would measure that.
        collectives.barrier()
        began = time.perf_counter()
        if (partner := pairs.get(collectives.rank())) is not None:
            swap = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
            for work in dist.batch_isend_irecv(swap):
                work.wait()
        times.append(time.perf_counter() - began)
    return judge(collectives.gather_numbers(times))


def judge(times: list[list[float]]) -> list[float]:
    """Each rank's link from every rank's time of every round.

    A pair takes what the later of the two takes: who cannot send is done at once, and its partner waits.
    """
    found = [math.inf] * len(times)
    for number, pairs in enumerate(rounds(len(times))):
        for rank, other in pairs.items():
            found[rank] = min(found[rank], max(times[rank][number], times[other][number]))
    return found
