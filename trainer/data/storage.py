"""Reading the bytes of a sample: from a file of its own, or from its place in a tar file."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.index import Index

_KEPT_OPEN = 512
Bytes = npt.NDArray[np.uint8]


class Storage(Protocol):
    """Where the images of a split are; may be used from many threads."""

    def read(self, sample: int) -> bytes:
        """The whole content of a sample.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def where(self, sample: int) -> str:
        """Its place in words that a user can follow."""
        ...

    def close(self) -> None:
        """Close what is open; may be called twice."""
        ...


def open_storage(index: Index, root: Path) -> Files | Shards:
    """The storage that the index tells of."""
    return Files(index, root) if index.places is None else Shards(index, root)


def shard_path(root: Path, split: str, number: int) -> Path:
    """The name of a tar file of a split."""
    return root / "shards" / f"{split}-{number:06d}.tar"


class Files:
    """Every sample is a file of its own below the data root."""

    def __init__(self, index: Index, root: Path) -> None:
        self._paths = index.paths
        self._root = Path(root).absolute()
        self._prefix = os.fsencode(self._root) + b"/"

    def read(self, sample: int) -> bytes:
        """The whole file."""
        return (self._root / self._paths[sample]).read_bytes()

    def length(self, sample: int) -> int:
        """Bytes of the file as it is now."""
        return os.stat(self._root / self._paths[sample]).st_size

    def names(self, ids: npt.NDArray[np.int64]) -> list[Bytes]:
        """The paths of samples (B,), as bytes, for who opens files on his own."""
        prefix, blob = self._prefix, self._paths.blob
        begins, ends = self._paths.offsets[ids].tolist(), self._paths.offsets[ids + 1].tolist()
        return [
            np.frombuffer(prefix + blob[begin:end], dtype=np.uint8) for begin, end in zip(begins, ends, strict=True)
        ]

    def where(self, sample: int) -> str:
        """Its path."""
        return str(self._root / self._paths[sample])

    def close(self) -> None:
        """Nothing stays open."""


class Shards:
    """Samples lie in tar files and are read from their places by `pread`, nothing mapped, no position shared.

    Tar files stay open once read from, the first 512 of them; others are opened for every read.
    """

    def __init__(self, index: Index, root: Path) -> None:
        assert index.places is not None
        self._index, self._places = index, index.places
        self._root = Path(root).absolute()
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, sample: int) -> bytes:
        """The whole content of a sample."""
        content = np.empty(int(self._index.bytes[sample]), np.uint8)
        self.read_into(sample, content)
        return content.tobytes()

    def read_into(self, sample: int, out: Bytes) -> None:
        """Read a sample into memory of its length.

        Raises:
            OSError: it cannot be read, or the tar file ends before it does.
        """
        self._read(sample, out, self.offset(sample))

    def _read(self, sample: int, out: Bytes, offset: int) -> None:
        file, kept = self._opened(int(self._places.shards[sample]), self.file(sample))
        try:
            _fill(file, memoryview(out.data), offset)
        finally:
            if not kept:
                os.close(file)

    def peek(self, sample: int, start: int, length: int) -> bytes:
        """Bytes of the tar file that a sample lies in.

        Raises:
            OSError: it cannot be read, or ends before.
        """
        out = np.empty(length, np.uint8)
        self._read(sample, out, start)
        return out.tobytes()

    def length(self, sample: int) -> int:
        """Bytes of the content, which its place in the tar file does not tell: the index's."""
        return int(self._index.bytes[sample])

    def file(self, sample: int) -> Path:
        """The tar file that a sample lies in."""
        return shard_path(self._root, self._index.split, int(self._places.shards[sample]))

    def offset(self, sample: int) -> int:
        """First byte of the content in it."""
        return int(self._places.offsets[sample])

    def where(self, sample: int) -> str:
        """Tar file, first byte, and the sample's path."""
        return f"{self.file(sample)}, byte {self.offset(sample)} ({self._index.paths[sample]})"

    def close(self) -> None:
        """Close the tar files; reading opens them again."""
        with self._lock:
            for file in self._open.values():
                os.close(file)
            self._open.clear()

    def __del__(self) -> None:
        self.close()

    def _opened(self, number: int, path: Path) -> tuple[int, bool]:
        with self._lock:
            if number in self._open:
                return self._open[number], True
            file = os.open(path, os.O_RDONLY)
            kept = len(self._open) < _KEPT_OPEN
            if kept:
                self._open[number] = file
            return file, kept


def _fill(file: int, out: memoryview, offset: int) -> None:
    done = 0
    while done < len(out):
        count = os.preadv(file, [out[done:]], offset + done)
        if not count:
            raise OSError(f"the file ends at byte {offset + done}, {len(out) - done} bytes too early")
        done += count
