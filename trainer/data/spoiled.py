"""Samples that are found damaged because a schedule of faults says so; no file of the user is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.index import Index
from trainer.data.storage import Bytes, Files, Shards


@dataclass(frozen=True)
class Spoiled:
    """Which samples read as zeros, for as long as the process lives.

    Attributes:
        samples: ids in the training split.
        note: called before the content of one of them is read, in any thread.
        folder: where damaged copies of files are put for those who read files by their names.
    """

    samples: frozenset[int]
    note: Callable[[int], None]
    folder: Path

    def open(self, index: Index, root: Path) -> Files | Shards:
        """The storage that the index tells of, but for the spoiled samples."""
        return SpoiledFiles(index, root, self) if index.places is None else SpoiledShards(index, root, self)


class SpoiledFiles(Files):
    """Files, some of them damaged."""

    def __init__(self, index: Index, root: Path, spoiled: Spoiled) -> None:
        super().__init__(index, root)
        self._lengths = index.bytes
        self._spoiled = spoiled

    def read(self, sample: int) -> bytes:
        """The file, or zeros."""
        if sample not in self._spoiled.samples:
            return super().read(sample)
        self._spoiled.note(sample)
        return bytes(int(self._lengths[sample]))

    def names(self, ids: npt.NDArray[np.int64]) -> list[Bytes]:
        """Names of files; that of a spoiled sample is a copy's."""
        names = super().names(ids)
        for position, sample in enumerate(ids.tolist()):
            if sample in self._spoiled.samples:
                copy = self._spoiled.folder / f"sample_{sample}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(self.read(sample))
                names[position] = np.frombuffer(bytes(copy.absolute()), np.uint8)
        return names


class SpoiledShards(Shards):
    """Tar files, some of whose samples are damaged."""

    def __init__(self, index: Index, root: Path, spoiled: Spoiled) -> None:
        super().__init__(index, root)
        self._spoiled = spoiled

    def read_into(self, sample: int, out: npt.NDArray[np.uint8]) -> None:
        """The sample, or zeros."""
        if sample in self._spoiled.samples:
            self._spoiled.note(sample)
            out[:] = 0
        else:
            super().read_into(sample, out)
