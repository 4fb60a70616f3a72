"""MLflow runs that still say RUNNING although their process has gone: killed, or ended while MLflow was away."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

from trainer.errors import DataError
from trainer.tracking.files import FileLock
from trainer.tracking.journal import last_record, milliseconds
from trainer.tracking.sent import FILE_NAME, Sent, SentFile
from trainer.tracking.status import SILENT_FOR_S, Status, read_status
from trainer.tracking.store import MlflowStore, is_lasting

logger = logging.getLogger(__name__)

LOCK_NAME = ".tracking.lock"
"""Held by whoever sends a run; a living sender also renews the file's time."""

_END = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "KILLED"}


def how_it_ended(status: Status | None) -> str:
    """A run that has ended, in MLflow's word; one that never said so was killed."""
    return _END["running" if status is None else status.state]


def is_gone(folder: Path, status: Status | None) -> bool:
    """Whether the process of a run has ended; where that cannot be known, a long silence is taken for it."""
    if status is None or status.state != "running":
        return True
    if status.alive():
        return False
    if status.hostname == socket.gethostname():
        return True
    try:
        return time.time() - (folder / LOCK_NAME).stat().st_mtime > SILENT_FOR_S
    except FileNotFoundError:
        return True


def end_gone(run_dir: Path, store: MlflowStore) -> None:
    """End what a store shows as running of the runs beside `run_dir` whose process has gone.

    Each is ended at the time of its journal's last line, as its status.json says. Lines that MLflow does not have are
    left to `reste track sync`.

    Raises:
        Exception: whatever MLflow raises while it cannot be reached; what was ended stays so.
    """
    for file in sorted(run_dir.parent.glob(f"*/{FILE_NAME}")):
        folder = file.parent
        try:
            if folder != run_dir and (folder / "status.json").exists():
                _end(folder, store)
        except (DataError, PermissionError) as error:
            logger.info("%s is left as it is in MLflow: %s", folder, error)


def _end(folder: Path, store: MlflowStore) -> None:
    file = SentFile(folder, store.uri)
    if not _says_running(file.load()):
        return
    lock = FileLock(folder / LOCK_NAME)
    if not lock.acquire():  # by its own process, by another start that does this, or by `reste track sync`
        return
    try:
        sent, status = file.load(), read_status(folder)
        if not _says_running(sent) or not is_gone(folder, status):
            return
        sent.ended = how_it_ended(status)
        if _end_in_store(sent, folder, store):
            logger.info("%s had no process any more: its MLflow run has ended as %s", folder, sent.ended)
        file.save(sent, current=False)
    finally:
        lock.release()


def _says_running(sent: Sent) -> bool:
    return sent.run_id is not None and sent.ended is None


def _end_in_store(sent: Sent, folder: Path, store: MlflowStore) -> bool:
    last = last_record(folder / "journal.jsonl")
    try:
        running = store.is_running(str(sent.run_id))
        if running:
            store.end(str(sent.run_id), str(sent.ended), end_ms=None if last is None else milliseconds(last))
    except Exception as error:
        if not is_lasting(error):
            raise
        return False  # it was deleted there
    return running
