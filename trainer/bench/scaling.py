"""From one rank to two on this machine's CPU: the rate, what the exchange of gradients costs, its bytes and order."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.bench.core import Bench, Goal, Row, ratio
from trainer.errors import ConfigError

RANKS = 2


def scaling_rows(bench: Bench) -> Iterator[Row]:
    """One rank alone, two without and two with the exchange, in turn in the same two processes, by the clock.

    Each rank has its share of the cores. The network is eager and in float32, gloo carries the gradients.

    Raises:
        ConfigError: the ranks failed.
    """
    told = _measured("scaling", bench)
    where, times = told["where"], told["times"]
    yield ratio("scaling", f"rate of {RANKS} ranks over {RANKS} alone", where, times["exchanging"], times["alone"])
    yield ratio("scaling", "rate with the exchange over without", where, times["exchanging"], times["apart"])
    if told["sent"] is not None:
        formula = [2 * (RANKS - 1) / RANKS * told["gradient_bytes"] / 2**20] * bench.repeats
        sent = [count / 2**20 for count in told["sent"]]
        what = "bytes a rank sends / 2(n-1)/n of the gradients'"
        yield ratio("scaling", what, where, sent, formula, Goal(1.02, 1.005, "lower"), unit="MiB")


def bucket_rows(bench: Bench) -> Iterator[Row]:
    """What splitting the compiled graph at the buckets of gradients is worth, on two ranks as in `scaling_rows`.

    Split, a bucket is exchanged while the rest of the backward pass computes; whole, all are exchanged after it.

    Raises:
        ConfigError: the ranks failed.
    """
    told = _measured("buckets", bench)
    what = "rate, one graph over one split by buckets"
    yield ratio("buckets", what, told["where"], told["times"]["whole"], told["times"]["split"])


def _measured(row: str, bench: Bench) -> dict[str, Any]:
    """What the ranks of `trainer.bench.ranks` have found."""
    from trainer.distributed.elastic import start_ranks

    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        options = {"row": row, "repeats": bench.repeats, "quick": bench.quick, "out": str(found)}
        ended = start_ranks([sys.executable, "-m", "trainer.bench.ranks", json.dumps(options)], RANKS)
        if ended.codes or not found.exists():
            raise ConfigError(
                f"row {row}: {RANKS} ranks did not end well ({ended.traceback or ended.codes}): see above, or leave "
                "the row out"
            )
        told: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return told
