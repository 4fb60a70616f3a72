"""How long collectives take, by latency and bandwidth alone (the alpha-beta model).

A message of S bytes takes alpha + S / beta from one rank to the next. Bandwidths are bus bandwidths, as NCCL's own
tests define them: an all-reduce of S bytes over n ranks moves 2 (n - 1) / n S through the busiest link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["best", "ring", "tree"]


@dataclass(frozen=True)
class Link:
    """Between two ranks.

    Attributes:
        latency_s: seconds of an empty message (alpha).
        bytes_per_s: bus bandwidth (beta).
    """

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Fabric:
    """Nodes of equal size.

    Attributes:
        inside: between ranks of one node.
        between: between nodes.
        per_node: ranks of a node.
        start_s: seconds that every collective takes beside its messages: it is launched, and ranks wait for each other.
    """

    inside: Link
    between: Link
    per_node: int
    start_s: float = 0.0

    def slowest(self, ranks: int) -> Link:
        """The link that so many neighbouring ranks cannot avoid."""
        return self.inside if ranks <= self.per_node else self.between


def ring_s(ranks: int, size: float, fabric: Fabric) -> float:
    """Seconds of a ring all-reduce of `size` bytes: 2 (n - 1) messages, one after the other."""
    link = fabric.slowest(ranks)
    return 2 * (ranks - 1) * link.latency_s + _transfer_s(ranks, size, link)


def tree_s(ranks: int, size: float, fabric: Fabric) -> float:
    """Seconds of a tree all-reduce: along the chain of a node, up and down a binary tree of nodes."""
    nodes = -(-ranks // fabric.per_node)
    chain = (min(ranks, fabric.per_node) - 1) * fabric.inside.latency_s
    climb = math.ceil(math.log2(nodes)) * fabric.between.latency_s
    return 2 * (chain + climb) + _transfer_s(ranks, size, fabric.slowest(ranks))


def _transfer_s(ranks: int, size: float, link: Link) -> float:
    return 2 * (ranks - 1) / ranks * size / link.bytes_per_s


def all_reduce_s(ranks: int, size: float, fabric: Fabric, algorithm: Algorithm = "best") -> float:
    """Seconds of an all-reduce of `size` bytes; `best` is the faster of ring and tree, as NCCL chooses."""
    if ranks == 1:
        return 0.0
    if algorithm == "best":
        return fabric.start_s + min(ring_s(ranks, size, fabric), tree_s(ranks, size, fabric))
    return fabric.start_s + (ring_s if algorithm == "ring" else tree_s)(ranks, size, fabric)


def all_gather_s(ranks: int, size: float, fabric: Fabric) -> float:
    """Seconds until every rank has the `size` bytes of each: n - 1 messages around a ring."""
    if ranks == 1:
        return 0.0
    link = fabric.slowest(ranks)
    return fabric.start_s + (ranks - 1) * (link.latency_s + size / link.bytes_per_s)
