"""What a preparation has put in its place so far, so that a killed one goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from types import TracebackType

from trainer.data.index import BEGUN, index_folder
from trainer.errors import DataError


@dataclass(frozen=True)
class Settings:
    """What a preparation must go on with.

    Attributes:
        source: folder or archive, absolute.
        form: "folder" or "shards".
        max_side: pixels that no side may exceed; None to keep images as they are.
    """

    source: str
    form: str
    max_side: int | None


@dataclass(frozen=True, slots=True)
class Stored:
    """One image in its place.

    Attributes:
        path: relative to the data root.
        taken_bytes, taken_crc32: length and checksum in the source.
        bytes, crc32: length and checksum as stored.
        height, width: pixels as stored.
        odd: what is unusual but harmless.
        shard, offset: its place in the tar files of its split; -1 for a file of its own.
    """

    path: str
    taken_bytes: int
    taken_crc32: int
    bytes: int
    crc32: int
    height: int
    width: int
    odd: tuple[str, ...]
    shard: int = -1
    offset: int = -1


class Begun:
    """The file `ROOT/index/begun.jsonl`: settings, then a line for every image that is in its place.

    Raises:
        DataError: another preparation is at work, or the settings are not those of the one that began.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        folder = index_folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / BEGUN
        self._file = open(self._path, "a+b")  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DataError(f"another reste prepare is at work on {root}: wait for its end") from None
        try:
            self.stored = self._read(root, settings)
        except BaseException:
            self._file.close()
            raise

    def _read(self, root: Path, settings: Settings) -> dict[str, Stored]:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        # What stands behind the last line break was being written when the process was killed.
        self._file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        if len(lines) == 1:
            self._write(json.dumps(asdict(settings)))
            return {}
        try:
            begun = Settings(**json.loads(lines[0]))
            stored = {image.path: image for image in map(_stored, lines[1:-1])}
        except (ValueError, TypeError) as error:
            raise DataError(f"{self._path} cannot be read ({type(error).__name__}): remove {root}") from error
        if begun != settings:
            was = f"{begun.source} as {begun.form}" + (f" with --max-side {begun.max_side}" if begun.max_side else "")
            raise DataError(f"{root} was begun from {was}: start it again so, or remove {root}")
        return stored

    def keep(self, stored: Stored) -> None:
        """Write down an image that is in its place, up to the operating system."""
        self._write(json.dumps(astuple(stored)))

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """Forget it all: the index is written."""
        os.unlink(self._path)

    def __enter__(self) -> Begun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _stored(line: bytes) -> Stored:
    found = Stored(*json.loads(line))
    return replace(found, odd=tuple(found.odd))
