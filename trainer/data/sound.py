"""What must hold of an index before it is believed: it may come from anywhere, with digests to match."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainer.data.paths import Paths

if TYPE_CHECKING:
    from trainer.data.index import Index

TYPES = {"labels": "<i8", "heights": "<i4", "widths": "<i4", "bytes": "<i8", "crc32": "<u4"}


def unsound(index: Index) -> str | None:
    """What is wrong with an index, in words; None if nothing is."""
    count = len(index.labels)
    for name, dtype in TYPES.items():
        column = getattr(index, name)
        if column.dtype != np.dtype(dtype) or column.shape != (count,):
            return f"its {name} are not {count} numbers of type {np.dtype(dtype)}"
    if count and not (index.labels.min() >= 0 and index.labels.max() < len(index.classes)):
        return f"it has labels beyond its {len(index.classes)} classes"
    if count and min(index.heights.min(), index.widths.min(), index.bytes.min() + 1) < 1:
        return "it has images without a size"
    if index.places is not None:
        shards, offsets = index.places.shards, index.places.offsets
        if (shards.dtype, offsets.dtype) != (np.int32, np.int64) or not shards.shape == offsets.shape == (count,):
            return f"its places are not {count} pairs of numbers"
        if count and min(shards.min(), offsets.min()) < 0:
            return "it has images at negative places"
    return _unsound_paths(index.paths, count)


def _unsound_paths(paths: Paths, count: int) -> str | None:
    offsets = paths.offsets
    if offsets.dtype != np.int64 or offsets.shape != (count + 1,):
        return f"it has not {count} paths"
    if offsets[0] != 0 or offsets[-1] != len(paths.blob) or (np.diff(offsets) < 1).any():
        return "its paths do not follow each other"
    blob = np.frombuffer(paths.blob, np.uint8)
    suspects = np.flatnonzero(blob[offsets[:-1]] == ord("/")).tolist()
    # A million paths are split only if one of them may be guilty.
    if b".." in paths.blob or b"\0" in paths.blob:
        suspects += [number for number in range(count) if not stays_inside(paths[number])]
    return f"its path {paths[suspects[0]]!r} leads out of the data root" if suspects else None


def stays_inside(path: str) -> bool:
    """Whether a relative path can only lead to places below where it starts, links aside."""
    return not path.startswith("/") and "\0" not in path and ".." not in path.split("/")
