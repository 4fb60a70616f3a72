"""Saving off the critical path: training waits for a copy of its state; a thread writes it while training goes on."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from trainer import checkpoint, checkpoints
from trainer.checkpoint import Progress
from trainer.errors import ConfigError
from trainer.snapshot import Snapshot

log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)
MIB = 2**20


@dataclass(frozen=True)
class News:
    """What has become of the saves since it was last asked.

    Attributes:
        saved: the newest complete checkpoint, None if there is no newer one.
        trouble: why the newest state is not on the disk, one line; None if it is, or is about to be.
    """

    saved: Path | None
    trouble: str | None


class Saver:
    """Writes the checkpoints of one run, one at a time.

    A full disk does not end training: the state that did not fit is kept in memory and tried again, until a newer one
    takes its place. Every other failure is raised on the training thread, at its next call.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many of the newest to keep, beside the best.
        retry_s: seconds between two tries on a full disk.
        writing: called in the thread when a checkpoint is half written; may raise as the disk does.
        written: called in the thread with each complete checkpoint and its step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        retry_s: float = 60.0,
        writing: Callable[[], None] = lambda: None,
        written: Callable[[Path, int], None] = lambda path, step: None,
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._retry_s = retry_s
        self._writing = writing
        self._written = written
        self._snapshot = Snapshot()
        self._thread: Thread | None = None
        self._ending = Event()
        self._superseded = False
        self._saved: Path | None = None
        self._trouble: str | None = None
        self._told = News(None, None)
        self._failure: BaseException | None = None
        self._stalled_s = 0.0

    @contextmanager
    def stalling(self) -> Iterator[None]:
        """Around all that the step loop waits for when it saves."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stalled_s += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """Seconds that the step loop stood still for saves since it was last asked; nothing if it did not."""
        stalled_s, self._stalled_s = self._stalled_s, 0.0
        return {"perf/save_stall_s": stalled_s} if stalled_s else {}

    def save(
        self,
        payloads: dict[str, Any],
        *,
        progress: Progress,
        config_yaml: str,
        about: dict[str, Any],
        best: bool,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy a state and have it written; returns once it is copied. Waits for the save before to be written.

        Args:
            payloads, progress, config_yaml, about: as `checkpoint.save`.
            best: whether `best` is to name it.
            first: called in the thread before anything is written; may raise as `checkpoint.save`.

        Raises:
            ConfigError: an earlier save failed, for another reason than a full disk.
        """
        self._end(superseded=True)
        self._raise_failure()
        state = self._snapshot.take(payloads)

        def write() -> None:
            first()
            path = checkpoint.save(
                self._folder, state, progress=progress, config_yaml=config_yaml, about=about, writing=self._writing
            )
            if best:
                checkpoints.mark_best(self._folder, path)
            checkpoints.prune(self._folder, self._keep)
            self._saved = path
            self._written(path, progress.step)

        name = f"step {progress.step}{', the best so far,' if best else ''}"
        self._thread = Thread(target=self._work, args=(write, name), name="saver", daemon=True)
        self._thread.start()

    def news(self) -> News | None:
        """What has become of the saves, None if it is what was told before. Does not wait.

        Raises:
            ConfigError: a save failed, for another reason than a full disk.
        """
        self._raise_failure()
        news = News(self._saved, self._trouble)
        if news == self._told:
            return None
        self._told = news
        return news

    def finish(self) -> None:
        """Wait until the newest state is on the disk; one that did not fit is tried once more.

        Raises:
            ConfigError: it is not there.
        """
        self._end()
        self._raise_failure()
        if self._trouble is not None:
            there = checkpoints.steps(self._folder)
            last = there[-1].name if there else "the beginning"
            raise ConfigError(f"{self._trouble}: free some space, and start again to go on from {last}")

    def newest(self) -> Path | None:
        """Wait for the save in flight, then the newest undamaged checkpoint; for going back to it."""
        self._end()
        self._raise_failure()
        return checkpoints.newest_valid(self._folder)

    def close(self) -> None:
        """Wait for the save in flight, however the run ends; harmless after `finish`."""
        self._end()
        if self._failure is not None:
            log.error("the last save failed: %s", self._failure)

    def _end(self, *, superseded: bool = False) -> None:
        """Wait for the thread to end; a state that did not fit is tried once more, or given up for a newer one."""
        if self._thread is not None:
            self._superseded = superseded
            self._ending.set()
            self._thread.join()
            self._thread = None
            self._ending.clear()

    def _work(self, write: Callable[[], None], name: str) -> None:
        """The thread: write, and while the disk is full try again."""
        try:
            while True:
                last = self._ending.is_set()
                if self._try(write, name) or last:
                    return
                self._ending.wait(self._retry_s)
                if self._ending.is_set() and self._superseded:
                    log.warning("%s was never saved", name)
                    return
        except BaseException as failure:
            # Raised on the training thread.
            self._failure = failure

    def _try(self, write: Callable[[], None], name: str) -> bool:
        try:
            write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            free = shutil.disk_usage(self._folder if self._folder.is_dir() else self._folder.parent).free / MIB
            self._trouble = (
                f"{name} is not saved ({error.strerror}): it takes {self._snapshot.nbytes / MIB:,.1f} MiB, "
                f"{free:,.1f} MiB are free"
            )
            log.warning("%s; free some space: it is tried again every %g s", self._trouble, self._retry_s)
            return False
        if self._trouble is not None:
            log.warning("%s is saved: there is room again", name)
        self._trouble = None
        return True

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            text = f"{failure.strerror or failure}: mend that, and start again to go on from the last checkpoint"
            raise ConfigError(text) from failure
        if failure is not None:
            raise failure
