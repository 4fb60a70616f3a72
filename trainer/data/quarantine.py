"""Samples that training does without because they cannot be read, and which others stand in for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.counter import STREAM_STAND_IN, WORDS_PER_BLOCK, random_words, to_integer
from trainer.errors import DataError


@dataclass(frozen=True)
class Finding:
    """A training sample that cannot be read.

    Attributes:
        sample: its id.
        path: its name in the index.
        reason: what the decoder said, in one line.
        step: 0-based optimizer step that it was wanted for first.
        rank: the rank that wanted it.
    """

    sample: int
    path: str
    reason: str
    step: int
    rank: int


class Quarantine:
    """Which samples are out, each from its step on, so that steps made again before it are what they were.

    What stands in for a sample is a pure function of (seed, sample, attempt), the first that is not out itself.
    As files stay bad whoever reads them, every rank of every number of ranks comes to the same stand-in.

    Args:
        seed: the run's seed.
        samples: how many there are.
    """

    def __init__(self, seed: int, samples: int) -> None:
        self._seed = seed
        self._samples = samples
        self._found: dict[int, Finding] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Leave samples out; of several findings of a sample the earliest counts."""
        for new in findings:
            known = self._found.get(new.sample)
            if known is None or (new.step, new.rank) < (known.step, known.rank):
                self._found[new.sample] = new

    def before(self, step: float) -> list[Finding]:
        """What was found by the steps before `step`, in their order."""
        found = (finding for finding in self._found.values() if finding.step < step)
        return sorted(found, key=lambda finding: (finding.step, finding.sample))

    def replaced(self, ids: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
        """Sample ids (B,) of a batch of `step` with those that are out replaced; `ids` itself if none is."""
        if not self._found:
            return ids
        stand_ins = {
            at: self._stand_in(sample, step) for at, sample in enumerate(ids.tolist()) if self._out(sample, step)
        }
        if not stand_ins:
            return ids
        ids = ids.copy()
        ids[list(stand_ins)] = list(stand_ins.values())
        return ids

    def check(self, limit: int, *, before: float = math.inf) -> None:
        """Refuse to go on without more than `limit` samples.

        Args:
            limit: how many may be out.
            before: only those found by earlier steps count.

        Raises:
            DataError: naming the last one that was found.
        """
        found = self.before(before)
        if len(found) <= limit:
            return
        last = found[-1]
        raise DataError(
            f"{len(found)} training images cannot be read, data.max_quarantined={limit} allows no more; the last "
            f"is {last.path} ({last.reason}): restore the data or prepare it again, or raise data.max_quarantined"
        )

    def _out(self, sample: int, step: int) -> bool:
        finding = self._found.get(sample)
        return finding is not None and finding.step <= step

    def _stand_in(self, sample: int, step: int) -> int:
        if len(self._found) >= self._samples:
            raise DataError("no training image can be read: restore the data, or prepare it again")
        block = 0
        while True:
            words = random_words(self._seed, STREAM_STAND_IN, block, start=sample, rows=1, width=WORDS_PER_BLOCK)
            for candidate in to_integer(words[0], self._samples).tolist():
                if not self._out(candidate, step):
                    return int(candidate)
            block += 1
