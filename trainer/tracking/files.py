"""Small files never seen half-written, and locks that die with their process."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import threading
from pathlib import Path
from typing import Any


def jsonable(value: Any) -> Any:
    """Make `value` strict JSON: infinities and NaN become "inf", "-inf" and "nan", keys become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replace `path` by `value` as indented JSON; a reader sees the old file or the new one, never a part.

    Args:
        path: The file.
        value: What `jsonable` makes JSON.
        durable: Wait for the disk. Without it a power cut (not a crash) may leave an empty file.

    Raises:
        OSError: The folder is missing, read-only or full; the old file is then untouched and no stump stays.
    """
    # Of this thread alone: two ranks may write status.json at once.
    stump = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with stump.open("w", encoding="utf-8") as file:
            json.dump(jsonable(value), file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())
        stump.replace(path)
    except OSError:
        stump.unlink(missing_ok=True)
        raise


class FileLock:
    """An advisory lock between processes, released when its process dies, however it dies.

    POSIX record locks are used because a forked helper that outlives its parent does not inherit them. A file
    system that cannot lock at all is treated as unlocked: two owners are then the user's to avoid.
    """

    def __init__(self, path: Path) -> None:
        """Remember `path`; the file is made on the first attempt and never deleted."""
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Try once, without waiting; True if the lock is held now."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                return False
        self._descriptor = descriptor
        return True

    def touch(self) -> None:
        """Renew the file's time, while the lock is held."""
        if self._descriptor is not None:
            os.utime(self._descriptor)

    def release(self) -> None:
        """Give the lock back; harmless if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
