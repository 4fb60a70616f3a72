"""What ranks tell each other, through files in the run's folder, when one of them has not gone on for too long.

A rank that is stopped, or stuck inside a library, cannot speak for itself, and neither can the store of the process
group if it is rank 0's. The folder can, and on the same machine /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.processes import process_state
from trainer.tracking.files import write_json

ANSWER_S = 10.0
"""How long the ranks wait for each other's reports."""
BY_THEMSELVES_S = 2.0
"""Of it, how long before a silent process on this machine is looked up, continued and made to dump its stacks."""
_STATES = {
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "D": "waits inside the system for a disk or a device",
    "Z": "has died",
}


@dataclass(frozen=True)
class Place:
    """Where a rank runs. `born`, in clock ticks since the machine's start, tells it from a later process."""

    host: str
    pid: int
    born: str

    @classmethod
    def here(cls) -> Place:
        """This process's own."""
        return cls(socket.gethostname(), os.getpid(), process_state(os.getpid())[1])

    def state(self) -> str | None:
        """The letter of /proc for a process on this machine, Z if it has gone; None on another machine."""
        if self.host != socket.gethostname():
            return None
        state, born = process_state(self.pid)
        return state if born == self.born else "Z"

    def send(self, number: int) -> None:
        """Signal it, if it is on this machine and still there."""
        if self.state() not in {None, "Z"}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Report:
    """What one rank says of itself: completed steps, what it has been doing and for how long, how many beats."""

    rank: int
    step: int
    doing: str
    seconds: float
    beats: int


class Inquest:
    """The reports on one hang.

    Args:
        folder: for them alone; its being there says that there is a hang.
        rank: this process's.
        places: of all ranks.
    """

    def __init__(self, folder: Path, rank: int, places: list[Place]) -> None:
        self.folder = folder
        self.rank = rank
        self.places = places

    def is_open(self) -> bool:
        """Whether some rank has begun one."""
        return self.folder.is_dir()

    def report(self, report: Report) -> None:
        """Say what this rank was doing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"rank_{self.rank}.json", asdict(report), durable=False)

    def gather(self, own: Report) -> tuple[dict[int, Report], dict[int, str]]:
        """Report, wait for the other ranks, look up those that keep silent; reports and states found, by rank."""
        began = time.monotonic()
        looked = False
        while True:
            # Again and again: a network file system may not look for others' files in a folder that it did not change.
            self.report(own)
            reports = {rank: Report(**content) for rank, content in self._read("rank").items()}
            silent = [rank for rank in range(len(self.places)) if rank not in reports]
            waited = time.monotonic() - began
            if not silent or waited > ANSWER_S:
                return reports, {rank: str(content) for rank, content in self._read("found").items()}
            if waited > BY_THEMSELVES_S and not looked:
                looked = True
                self._look_up(silent, reports)
            time.sleep(0.2)

    def _look_up(self, silent: list[int], reports: dict[int, Report]) -> None:
        here = self.places[self.rank].host
        speaks_here = min(rank for rank in reports if self.places[rank].host == here) == self.rank
        for rank in silent if speaks_here else []:
            state = self.places[rank].state()
            if state is not None:
                write_json(self.folder / f"found_{rank}.json", state, durable=False)
                # In this order: it dumps the stacks it was stopped with before it does anything else.
                self.places[rank].send(signal.SIGQUIT)
                self.places[rank].send(signal.SIGCONT)

    def end_silent(self, reports: dict[int, Report]) -> None:
        """Kill those on this machine that have not even reported; nothing else ends a process stuck in a library."""
        for rank, place in enumerate(self.places):
            if rank not in reports:
                place.send(signal.SIGKILL)

    def _read(self, kind: str) -> dict[int, Any]:
        found = {}
        for path in self.folder.glob(f"{kind}_*.json"):
            with contextlib.suppress(OSError, ValueError):
                found[int(path.stem.rpartition("_")[2])] = json.loads(path.read_text(encoding="utf-8"))
        return found


def blamed(reports: dict[int, Report], found: dict[int, str], world: int) -> list[int]:
    """The ranks that hold the others up: stopped ones, else silent ones, else those behind; empty if all are alike."""
    tests: list[Callable[[int], bool]] = [
        lambda rank: found.get(rank) in {"T", "t", "D", "Z"},
        lambda rank: rank not in reports,
        lambda rank: reports[rank].beats < max(report.beats for report in reports.values()),
    ]
    return next((ranks for test in tests if (ranks := [rank for rank in range(world) if test(rank)])), [])


def verdict(reports: dict[int, Report], found: dict[int, str], places: list[Place]) -> str:
    """One sentence on who did not go on, where, and doing what."""
    ranks = blamed(reports, found, len(places))
    if not ranks:
        one = reports[min(reports)]
        return f"all ranks stand at the same place, {one.doing} after step {one.step}"
    told = []
    for rank in ranks:
        who = f"rank {rank} (process {places[rank].pid} on {places[rank].host})"
        what = _STATES.get(found.get(rank, ""), "goes on no more" if rank in reports else "does not answer")
        where = f", {reports[rank].doing} after step {reports[rank].step}" if rank in reports else ""
        told.append(f"{who} {what}{where}")
    return "; ".join(told)
