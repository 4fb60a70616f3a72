"""The journal: every metric and event of a run as one line of JSON, appended and never rewritten.

    {"type": "metrics", "step": 12, "time": 1700000000.25, "metrics": {"train/loss": 0.5}}
    {"type": "event", "step": 12, "time": 1700000000.5, "event": "resumed", "from": "checkpoints/step_00000012"}

Times are unix seconds. Floats are written with their shortest exact representation; infinities and NaN are
the strings "inf", "-inf" and "nan", since JSON has no such numbers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.tracking.files import jsonable

logger = logging.getLogger(__name__)

_MOST_UNWRITTEN = 100_000


class Journal:
    """Append-only writer of one run's journal, used by rank 0.

    Opening an existing journal goes on at its end; a last line torn by a crash is dropped. A full disk does
    not end training: lines wait in memory and are written when there is room again.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create the journal.

        Args:
            path: The file; None makes a journal that writes nothing, for the ranks other than 0.
            clock: Gives the unix time in seconds of each line.
        """
        self.path = path
        self._clock = clock
        self._unwritten: list[bytes] = []
        self._complained = False
        self._descriptor = -1
        self._size = 0
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._size = _end_of_last_line(self._descriptor, os.fstat(self._descriptor).st_size)
            os.ftruncate(self._descriptor, self._size)

    def write(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append one line of metrics; it survives `kill -9` as soon as this returns."""
        values = {key: float(value) for key, value in metrics.items()}
        self._append({"type": "metrics", "step": step, "time": self._clock(), "metrics": values})

    def event(self, name: str, *, step: int, fields: Mapping[str, Any] | None = None) -> None:
        """Append an event (started, resumed, inherited, nonfinite, rolled_back, ...) with JSON `fields` of its own."""
        self._append({**(fields or {}), "type": "event", "step": step, "time": self._clock(), "event": name})

    def offset(self) -> int:
        """Bytes of all lines so far, those included that wait for room: where the next line begins."""
        return self._size + sum(map(len, self._unwritten))

    def wait(self, offset: int) -> None:
        """Wait until all lines before `offset` are on the disk. Another thread than the writer's may call it.

        Raises:
            OSError: some of them wait for room, or the disk fails.
        """
        if self._descriptor < 0:
            return
        if self._size < offset:
            raise OSError(errno.ENOSPC, f"lines of {self.path} wait for room")
        os.fsync(self._descriptor)

    def sync(self) -> None:
        """Wait until all lines are on the disk, so that they survive a power cut."""
        if self._descriptor < 0:
            return
        self._flush()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._complain(error)

    def cut(self, offset: int) -> Path | None:
        """Go back to `offset`, as recorded by the checkpoint that is resumed; call it before a sender starts.

        Returns:
            The file `journal.lost-N.jsonl` that keeps what was cut off, or None if there was nothing to cut.

        Raises:
            DataError: `offset` is not the beginning of a line, so the checkpoint belongs to another journal.
        """
        if self.path is None or offset == self._size:
            return None
        if offset > self._size:
            logger.warning(
                "%s ends %d bytes before the checkpoint: metrics are missing", self.path, offset - self._size
            )
            return None
        if offset > 0 and os.pread(self._descriptor, 1, offset - 1) != b"\n":
            raise DataError(f"{self.path} does not belong to this checkpoint (byte {offset}): move it away to go on")
        lost = _keep(self.path, os.pread(self._descriptor, self._size - offset, offset))
        os.ftruncate(self._descriptor, offset)
        os.fsync(self._descriptor)
        self._size = offset
        return lost

    def close(self) -> None:
        """Write what waits, sync and close; harmless when done twice."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        if self._descriptor < 0:
            raise ValueError(f"the journal {self.path} is closed")
        self._unwritten.append(json.dumps(jsonable(record), allow_nan=False).encode() + b"\n")
        del self._unwritten[:-_MOST_UNWRITTEN]
        self._flush()

    def _flush(self) -> None:
        """Write whole lines in order; whatever of a line got to a full disk is taken back."""
        try:
            while self._unwritten:
                line = self._unwritten[0]
                done = 0
                while done < len(line):
                    done += os.pwrite(self._descriptor, line[done:], self._size + done)
                self._size += len(line)
                del self._unwritten[0]
            self._complained = False
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that failed may fail again; the line is written over then
                os.ftruncate(self._descriptor, self._size)
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            logger.warning("%s cannot be written (%s); lines wait in memory, free some space", self.path, error)
        self._complained = True


def read_journal(path: Path, from_offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(offset behind the record, record)` for each whole line from byte `from_offset` on.

    A last line without its newline is being written, or was torn by a crash: it is not yielded. Metric values
    are floats again, infinities and NaN included.

    Raises:
        DataError: There is no such journal, or a whole line in it is damaged.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: name the folder of a run") from None
    with file:
        file.seek(from_offset)
        offset = from_offset
        for line in file:
            if not line.endswith(b"\n"):
                return
            record = _decode(line, path, offset)
            offset += len(line)
            yield offset, record


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole line of a journal, read from its end; None if it has none.

    Raises:
        DataError: that line is damaged.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        end = _end_of_last_line(descriptor, os.fstat(descriptor).st_size)
        begin = _end_of_last_line(descriptor, end - 1) if end else 0
        line = os.pread(descriptor, end - begin, begin)
    finally:
        os.close(descriptor)
    return _decode(line, path, begin) if line else None


def milliseconds(record: Mapping[str, Any]) -> int:
    """When a line was written, as MLflow counts time."""
    return round(record["time"] * 1000)


def _decode(line: bytes, path: Path, offset: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if record["type"] == "metrics":
            record["metrics"] = {key: float(value) for key, value in record["metrics"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path} is damaged at byte {offset}: cut or mend that line") from None
    return record


def _end_of_last_line(descriptor: int, end: int) -> int:
    """Offset behind the last newline before `end`, looking backwards in blocks."""
    while end > 0:
        begin = max(0, end - 65536)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _keep(path: Path, tail: bytes) -> Path:
    """Save a tail beside the journal under the next free number, on the disk before the journal is cut."""
    taken = [int(other.stem.rpartition("-")[2]) for other in path.parent.glob(f"{path.stem}.lost-[0-9]*{path.suffix}")]
    lost = path.with_name(f"{path.stem}.lost-{max(taken, default=0) + 1}{path.suffix}")
    with lost.open("xb") as file:
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
    return lost
