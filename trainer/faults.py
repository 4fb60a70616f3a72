"""Faults on a schedule, so that what a run survives can be shown: `RESTE_FAULTS="kill9@1:40 nan@0:33"`.

docs/reliability.md says what each fault does. Steps count from 1, as in the journal. Each fault comes once: it is
written to `faults.jsonl` in the run's folder before it happens, so that a run that goes on does not meet it again.
Without `RESTE_FAULTS` nothing here is in the way.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoints import steps
from trainer.data.batch import Batch
from trainer.errors import ConfigError

log = logging.getLogger(__name__)
VARIABLE = "RESTE_FAULTS"
LEDGER = "faults.jsonl"
LATEST = -1

_AT_STEP = r"(?P<kind>kill9|stop|exit0|raise|sigterm|nan)@(?P<rank>\d+|\*):(?P<first>[1-9]\d*)"
_SLOW = r"(?P<kind>slow)@(?P<rank>\d+|\*):(?P<first>[1-9]\d*)-(?P<last>\d+)(?:=(?P<seconds>\d+(?:\.\d+)?))?"
_SAVE = r"(?P<kind>enospc)@save:(?P<first>[1-9]\d*)"
_FLIP = r"(?P<kind>flip)@ckpt:(?:latest|(?P<first>[1-9]\d*))"
_SAMPLE = r"(?P<kind>corrupt)@sample:(?P<first>\d+)"
_TRACKER = r"(?P<kind>tracker_down)@(?P<first>[1-9]\d*)-(?P<last>\d+)"
_FORMS = [re.compile(form) for form in (_AT_STEP, _SLOW, _SAVE, _FLIP, _SAMPLE, _TRACKER)]


@dataclass(frozen=True)
class Fault:
    """One fault of the schedule.

    Attributes:
        text: as it was written; its name in the ledger.
        kind: what happens.
        rank: on which rank, None for every one (or for rank 0, where only that one acts).
        first: step, number of the save, or sample id; `LATEST` for the newest checkpoint.
        last: last step of a range; else `first`.
        seconds: of sleep before each step.
    """

    text: str
    kind: str
    rank: int | None
    first: int
    last: int
    seconds: float


def parse_faults(text: str) -> list[Fault]:
    """The faults of a schedule, separated by spaces.

    Raises:
        ConfigError: one of them has no known form.
    """
    return [_parse(word) for word in dict.fromkeys(text.split())]


def _parse(word: str) -> Fault:
    found = next((match.groupdict() for form in _FORMS if (match := form.fullmatch(word))), None)
    if found is None:
        raise ConfigError(
            f"{VARIABLE}: {word!r} is no fault: write kill9|stop|exit0|raise|sigterm|nan@RANK:STEP, "
            "slow@RANK:FIRST-LAST, enospc@save:N, flip@ckpt:latest|STEP, corrupt@sample:ID or tracker_down@FIRST-LAST"
        )
    first = int(found["first"] or LATEST)
    last = int(found.get("last") or first)
    if last < first:
        raise ConfigError(f"{VARIABLE}: {word!r} ends before it begins")
    rank = found.get("rank") or "*"
    return Fault(
        text=word,
        kind=found["kind"],
        rank=None if rank == "*" else int(rank),
        first=first,
        last=last,
        seconds=float(found.get("seconds") or 1.0),
    )


class Faults:
    """The faults that this rank is to meet, and the ledger of those that it has met.

    Args:
        schedule: of all ranks.
        run_dir: holds the ledger.
        rank: this process.
    """

    def __init__(self, schedule: list[Fault], run_dir: Path, rank: int) -> None:
        self._ledger = run_dir / LEDGER
        self._rank = rank
        met = _met(self._ledger)
        mine = [fault for fault in schedule if fault.rank in (None, rank)]
        # A file is repaired for all ranks.
        repaired = {text for text, _ in met if text.startswith("corrupt")}
        self._open = [fault for fault in mine if (fault.text, rank) not in met and fault.text not in repaired]
        self._under_way: set[Fault] = set()
        self._outages: tuple[Fault, ...] = ()
        self._saves = 0
        if schedule:
            log.warning("%s is set: %d of %d faults still to come here", VARIABLE, len(self._open), len(schedule))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], run_dir: Path, rank: int) -> Faults:
        """As `RESTE_FAULTS` says; none if it is not set.

        Raises:
            ConfigError: it cannot be understood.
        """
        return cls(parse_faults(environment.get(VARIABLE, "")), run_dir, rank)

    def around(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """This rank's training batches, each preceded by the faults of its step."""
        if not any(fault.kind in _ACTS or fault.kind in ("nan", "slow", "tracker_down") for fault in self._open):
            return batches
        return self._around(batches)

    def _around(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            step = batch.plan.step + 1
            self._tracker_outages(step)
            for fault in self._due("slow", step):
                self._note(fault, ends=step == fault.last)
                time.sleep(fault.seconds)
            for kind, act in _ACTS.items():
                for fault in self._due(kind, step):
                    self._note(fault)
                    act()
            poisoned = self._due("nan", step)
            for fault in poisoned:
                # Every micro-batch of the step is met, the ledger names it once.
                self._note(fault, ends=False)
            yield _poisoned(batch) if poisoned else batch

    def writing(self) -> None:
        """A checkpoint is half written.

        Raises:
            OSError: no space is left on the device, says the schedule.
        """
        self._saves += 1
        for fault in self._due("enospc", self._saves):
            self._note(fault)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def written(self, path: Path, step: int) -> None:
        """The checkpoint of `step` is complete."""
        for fault in self._due("flip", step):
            self._flip(fault, path)

    def before_resuming(self, checkpoints: Path) -> None:
        """This start is about to look for a checkpoint; rank 0 alone."""
        for fault in [f for f in self._open if f.kind == "flip" and f.first == LATEST]:
            if found := steps(checkpoints):
                self._flip(fault, found[-1])

    def spoiled_samples(self) -> list[int]:
        """Training samples whose content is to be found damaged."""
        return [fault.first for fault in self._open if fault.kind == "corrupt"]

    def spoiled(self, sample: int) -> None:
        """The damaged content of a sample is about to be read; may be called from any thread."""
        for fault in self._due("corrupt", sample):
            self._note(fault)

    def tracker_is_down(self, step: int) -> bool:
        """Whether MLflow is not to answer now that the run has made `step`; asked by the tracker's thread."""
        return any(fault.first <= step <= fault.last for fault in self._outages)

    def _tracker_outages(self, step: int) -> None:
        """The outages of this step, in the ledger whether or not the tracker's thread looks in time."""
        # Rank 0 alone has a tracker.
        self._outages = tuple(self._due("tracker_down", step)) if self._rank == 0 else ()
        for fault in self._outages:
            self._note(fault, ends=False)

    def _due(self, kind: str, at: int) -> list[Fault]:
        return [fault for fault in self._open if fault.kind == kind and fault.first <= at <= fault.last]

    def _note(self, fault: Fault, *, ends: bool = True) -> None:
        """Write a fault to the ledger, on the disk, before it happens."""
        if fault not in self._under_way:
            self._under_way.add(fault)
            self._ledger.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"fault": fault.text, "rank": self._rank, "time": time.time()}) + "\n"
            with self._ledger.open("ab", buffering=0) as file:
                file.write(line.encode())
                os.fsync(file.fileno())
            log.warning("fault injected: %s", fault.text)
        if ends:
            self._open = [other for other in self._open if other != fault]

    def _flip(self, fault: Fault, path: Path) -> None:
        self._note(fault)
        file = max((file for file in path.iterdir() if file.is_file()), key=lambda file: file.stat().st_size)
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 2)
            byte = opened.read(1)[0]
            opened.seek(-1, os.SEEK_CUR)
            opened.write(bytes([byte ^ 1]))


def _met(ledger: Path) -> set[tuple[str, int]]:
    if not ledger.exists():
        return set()
    # What follows the last line break was being written by a process that has been killed.
    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").split("\n")[:-1]]
    return {(line["fault"], line["rank"]) for line in lines}


def _poisoned(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=torch.full_like(batch.images, torch.nan, dtype=torch.float32))


def _signalled(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _raise() -> None:
    raise RuntimeError(f"injected by {VARIABLE}")


_ACTS: dict[str, Callable[[], None]] = {
    "kill9": _signalled(signal.SIGKILL),
    "stop": _signalled(signal.SIGSTOP),
    "exit0": lambda: os._exit(0),
    "raise": _raise,
    "sigterm": _signalled(signal.SIGTERM),
}
