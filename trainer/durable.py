"""Files that are on the disk when a function returns, and their digests."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


class _Digesting:
    """A file that takes the digest of what is written to it, so that it need not be read again.

    torch wraps the error of a full disk into one of its own that does not name it; it is remembered here.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        try:
            self.bytes += self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def sha256(self) -> str:
        return self._digest.hexdigest()


def write_file(path: Path, put: Callable[[Any], object]) -> dict[str, Any]:
    """Write a file and wait until it is on the disk.

    Args:
        path: the file.
        put: writes to the open file that it is given.

    Returns:
        `sha256` and `bytes` of what has been written.

    Raises:
        OSError: it could not be written whole; what there is of it stays.
    """
    with path.open("wb") as file:
        output = _Digesting(file)
        try:
            put(output)
        except RuntimeError:
            if output.error is not None:
                raise output.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": output.sha256(), "bytes": output.bytes}


def replace_file(path: Path, content: bytes | memoryview) -> Path:
    """Write a file whole or not at all, in the place of one of its name; returns its path.

    Several may write it at once: the last one's stays.

    Raises:
        OSError: it could not be written; what was there before is still there, and nothing else.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        write_file(unfinished, lambda file: file.write(content))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def sync_folder(path: Path) -> None:
    """Push a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
