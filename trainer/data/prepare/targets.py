"""Where a preparation puts images: files in folders, or tar files of about one size."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from trainer.data.prepare.begun import Stored
from trainer.data.storage import shard_path

SHARD_BYTES = 1 << 30


class Target(Protocol):
    """Takes images in two steps, the first in any thread."""

    def holds(self, stored: Stored) -> bool:
        """Whether an image from before is still in its place."""
        ...

    def write(self, path: str, content: bytes, link: Path | None) -> None:
        """Write an image that needs no order; called in threads. `link` is a file with this content, if any."""
        ...

    def append(self, path: str, content: bytes) -> tuple[int, int]:
        """Give an image its place (shard, offset), in order."""
        ...

    def close(self) -> None:
        """Everything has its place."""
        ...


class FolderTarget:
    """`ROOT/train/CLASS/NAME` and `ROOT/val/CLASS/NAME`; a file appears whole or not at all."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def holds(self, stored: Stored) -> bool:
        """Whether the file is there, as long as it was."""
        try:
            return os.stat(self._root / stored.path).st_size == stored.bytes
        except OSError:
            return False

    def write(self, path: str, content: bytes, link: Path | None) -> None:
        """Make a hard link if there is something to link to and the file system can, else a copy."""
        target = self._root / path
        temporary = target.with_name(f".{target.name}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        if link is None or not _linked(link, temporary):
            temporary.write_bytes(content)
        os.replace(temporary, target)
        # Replacing a file by another name of itself leaves both names.
        temporary.unlink(missing_ok=True)

    def append(self, path: str, content: bytes) -> tuple[int, int]:
        """A file of its own."""
        return -1, -1

    def close(self) -> None:
        """Nothing is open."""


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or one without links
        return False
    return True


class ShardTarget:
    """`ROOT/shards/<split>-000000.tar` and on, plain tar files whose members are `<split>/CLASS/NAME`.

    Args:
        root: data root.
        stored: images from before; what is not whole any more is cut off the last tar file of a split.
        shard_bytes: a tar file is ended once it is as long.
    """

    def __init__(self, root: Path, stored: Iterable[Stored], *, shard_bytes: int = SHARD_BYTES) -> None:
        self._root = root
        self._shard_bytes = shard_bytes
        self._file: int | None = None
        self._split, self._number, self._end = "", -1, 0
        self._kept: set[str] = set()
        self._last: dict[str, tuple[int, int]] = {}
        (root / "shards").mkdir(parents=True, exist_ok=True)
        by_shard: dict[tuple[str, int], list[Stored]] = {}
        for image in stored:
            by_shard.setdefault((image.path.partition("/")[0], image.shard), []).append(image)
        newest = {split: max(number for other, number in by_shard if other == split) for split, _ in by_shard}
        for (split, number), images in by_shard.items():
            self._recall(split, number, images, verify=number == newest[split])

    def _recall(self, split: str, number: int, images: list[Stored], *, verify: bool) -> None:
        """Believe what lies within the file; of a split's last file, which was not ended, only what is verified."""
        end = 0
        try:
            with open(shard_path(self._root, split, number), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                for image in sorted(images, key=lambda image: image.offset):
                    if image.offset + image.bytes > size or (verify and not _is_whole(file.fileno(), image)):
                        break
                    self._kept.add(image.path)
                    end = padded(image.offset + image.bytes)
        except FileNotFoundError:
            pass
        if verify:
            self._last[split] = (number, end)

    def holds(self, stored: Stored) -> bool:
        """Whether it was found whole."""
        return stored.path in self._kept

    def write(self, path: str, content: bytes, link: Path | None) -> None:
        """Tar files are written in order."""

    def append(self, path: str, content: bytes) -> tuple[int, int]:
        """Write header and content at the end of the newest tar file of the split."""
        split = path.partition("/")[0]
        if split != self._split or self._end >= self._shard_bytes:
            self._next_file(split)
        assert self._file is not None
        header = header_of(path, len(content))
        offset = self._end + len(header)
        end = padded(offset + len(content))
        _write_all(self._file, b"".join((header, content, bytes(end - offset - len(content)))), self._end)
        self._end = end
        return self._number, offset

    def _next_file(self, split: str) -> None:
        self.close()
        if split != self._split:
            self._last[self._split] = (self._number, self._end)
            self._number, self._end = self._last.get(split, (0, 0))
            self._split = split
        if self._end >= self._shard_bytes:
            self._number, self._end = self._number + 1, 0
        self._file = os.open(shard_path(self._root, split, self._number), os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, self._end)

    def close(self) -> None:
        """End the tar file that is being written, down to the disk."""
        if self._file is not None:
            _write_all(self._file, bytes(2 * tarfile.BLOCKSIZE), self._end)
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


def header_of(path: str, size: int) -> bytes:
    """The header of a tar file's member, as it is always written."""
    info = tarfile.TarInfo(path)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padded(position: int) -> int:
    """Where the next block of a tar file begins."""
    return -(-position // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _is_whole(file: int, image: Stored) -> bool:
    return zlib.crc32(os.pread(file, image.bytes, image.offset)) == image.crc32


def _write_all(file: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count
