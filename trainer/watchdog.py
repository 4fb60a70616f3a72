"""A thread per rank that ends a run which does not go on, and says which rank held it up and where."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trainer.config import Config
from trainer.distributed import collectives
from trainer.errors import EXIT_HUNG
from trainer.failures import note_exit_code, note_failure
from trainer.hang import ANSWER_S, Inquest, Place, Report, verdict
from trainer.pulse import Pulse

DUMP_SIGNAL = signal.SIGQUIT
"""A rank that gets this writes the stacks of all its threads to its log file, and goes on."""

# The process group's own time-out says less, so it comes later.
_LATER_S = 60.0
_COLLECTIVE_S = 600.0


def create_watchdog(config: Config) -> Watchdog:
    """A watchdog with the configuration's time-outs."""
    return Watchdog(Pulse(), start_s=config.run.start_timeout_s, step_s=config.run.step_timeout_s)


def collective_timeout_s(config: Config) -> float:
    """Seconds after which a collective that a rank does not join becomes an error, should the watchdog not end it."""
    limits = [limit + _LATER_S for limit in (config.run.start_timeout_s, config.run.step_timeout_s) if limit]
    return max([_COLLECTIVE_S, *limits])


class Watchdog:
    """Watches a pulse.

    Args:
        pulse: of this rank.
        start_s: longest time without a beat until the first step is done, None for no limit.
        step_s: the same for later.
    """

    def __init__(self, pulse: Pulse, *, start_s: float | None, step_s: float | None) -> None:
        self.pulse = pulse
        self._start_s = start_s
        self._step_s = step_s
        self._tick = min([1.0, *(limit / 4 for limit in (start_s, step_s) if limit is not None)])
        self._end = threading.Event()
        self._directory: Path | None = None
        self._inquest: Inquest | None = None
        self._log: IO[str] | None = None

    def attach(self, directory: Path, rank: int) -> list[Place]:
        """Learn where the run's folder is and where the ranks run; returns these places. A collective."""
        logs = directory / "logs"
        if rank == 0:
            for old in logs.glob("hang-*"):
                shutil.rmtree(old, ignore_errors=True)
            for written in logs.glob("collectives_rank_*.json"):
                written.unlink()
        self._log = (logs / f"rank_{rank}.log").open("a", encoding="utf-8")
        faulthandler.register(DUMP_SIGNAL, file=self._log, all_threads=True, chain=False)
        faulthandler.enable(file=self._log, all_threads=True)
        places = collectives.gather_objects(Place.here())
        self._directory = directory
        # A name of this life's own: other machines may see for a while what has been removed here.
        self._inquest = Inquest(logs / f"hang-{places[0].host}-{places[0].pid}", rank, places)
        return places

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a rank's whole life."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def close(self) -> None:
        """Let go of the log file."""
        faulthandler.unregister(DUMP_SIGNAL)
        faulthandler.disable()
        self._inquest = None
        if self._log is not None:
            self._log.close()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._end.wait(self._tick):
            now = time.monotonic()
            if now - looked > 4 * self._tick:
                # Whoever stopped this process (a suspended job, a laptop's lid) will have stopped all of it.
                self.pulse.since += now - looked
            looked = now
            limit = self._step_s if self.pulse.stepped else self._start_s
            late = limit is not None and now - self.pulse.since > limit
            if late or (self._inquest is not None and self._inquest.is_open()):
                self._give_up()

    def _give_up(self) -> None:
        """Report, hear the other ranks, let the lowest speak, and end this process."""
        # Even if the folder itself is what hangs.
        faulthandler.dump_traceback_later(3 * ANSWER_S, exit=True)
        pulse = self.pulse
        silent_s = max(time.monotonic() - pulse.since, 0.0)
        if self._inquest is None or self._directory is None:
            faulthandler.dump_traceback(sys.stderr)
            print(f"error: {pulse.doing} has taken {silent_s:.0f} s: raise run.start_timeout_s", file=sys.stderr)
            _leave_exit_code()
            os._exit(EXIT_HUNG)
        if self._log is not None:
            # Also if another rank has asked for stacks by a signal: the thread that answers it may not get to its end.
            print(f"no progress for {silent_s:.0f} s, {pulse.doing}; stacks:", file=self._log, flush=True)
            faulthandler.dump_traceback(self._log)
        rank = self._inquest.rank
        dump = self._directory / "logs" / f"collectives_rank_{rank}.json"
        # Now: a rank that was stopped is about to be continued, and then takes part in what the others wait for.
        self._record_collectives(dump, of_device=False)
        own = Report(rank, pulse.step, pulse.doing, silent_s, pulse.beats)
        reports, found = self._inquest.gather(own)
        if rank == min(reports):
            self._speak(verdict(reports, found, self._inquest.places), max(r.seconds for r in reports.values()))
        self._inquest.end_silent(reports)
        _leave_exit_code()
        if collectives.on_device():
            self._record_collectives(dump, of_device=True)
        os._exit(EXIT_HUNG)

    def _record_collectives(self, place: Path, *, of_device: bool) -> None:
        try:
            place.write_text(collectives.recorded(of_device=of_device), encoding="utf-8")
        except Exception as error:  # whatever torch's recorder does: this process must end
            print(f"{place.name} could not be written: {error}", file=self._log or sys.stderr, flush=True)

    def _speak(self, sentence: str, silent_s: float) -> None:
        assert self._directory is not None
        message = f"no progress for {silent_s:.0f} s: {sentence}"
        note_failure(self._directory, EXIT_HUNG, message)
        print(
            f"error: {message}; stacks of all ranks: {self._directory / 'logs'}; start again to go on from the last "
            "checkpoint",
            file=sys.stderr,
            flush=True,
        )


def _leave_exit_code() -> None:
    # Where the disk is what hangs, this process has to end all the same.
    with suppress(OSError):
        note_exit_code(EXIT_HUNG, unless_told=True)
