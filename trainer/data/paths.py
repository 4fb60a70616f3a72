"""A million path names without a million objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class Paths(Sequence[str]):
    """A million path names in two arrays instead of a million objects.

    Attributes:
        blob: all names in UTF-8, one after the other.
        offsets: int64 (N + 1,) where each name begins in the blob.
    """

    def __init__(self, blob: bytes, offsets: npt.NDArray[np.int64]) -> None:
        self.blob = blob
        self.offsets = offsets

    @classmethod
    def of(cls, names: Iterable[str]) -> Paths:
        """Pack names given as strings."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        lengths = np.fromiter((len(name) for name in encoded), dtype=np.int64, count=len(encoded))
        return cls(b"".join(encoded), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def encoded(self, which: int) -> bytes:
        """The name as UTF-8 bytes."""
        return self.blob[self.offsets[which] : self.offsets[which + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> list[str]: ...
    def __getitem__(self, which: int | slice) -> str | list[str]:
        if isinstance(which, slice):
            return [self[i] for i in range(*which.indices(len(self)))]
        if not -len(self) <= which < len(self):
            raise IndexError(which)
        return self.encoded(which % len(self)).decode("utf-8", "surrogateescape")
