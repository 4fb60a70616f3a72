"""Naming the file, or the place in a tar file, that ended a run."""

from __future__ import annotations

import zlib

from trainer.data.index import Index
from trainer.data.storage import Storage
from trainer.errors import DataError


class UnreadableError(DataError):
    """A sample could not be turned into pixels.

    Attributes:
        sample: its id; None if every sample could be read when it was tried again.
        path: its name in the index.
        reason: what the decoder said, in one line.
    """

    sample: int | None = None
    path: str = ""
    reason: str = ""


def file_fault(index: Index, storage: Storage, sample: int, *, rank: int, reason: str) -> UnreadableError:
    """The error for a file that could not be turned into pixels, with what to do about it.

    Args:
        index: the split.
        storage: where its samples are read.
        sample: sample id.
        rank: the rank that read it.
        reason: what the decoder said, in one line.
    """
    error = UnreadableError(
        f"{storage.where(sample)} (sample {sample} of {index.split}, rank {rank}) cannot be used: {reason}; "
        f"{_what_changed(index, storage, sample)}"
    )
    error.sample, error.path, error.reason = sample, index.paths[sample], reason
    return error


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _what_changed(index: Index, storage: Storage, sample: int) -> str:
    try:
        content = storage.read(sample)
    except OSError:
        return "is the data folder mounted here, as it was when it was indexed?"
    again = "run `reste prepare folder` again, with --skip-bad to leave it out"
    if index.places is not None:
        again = "prepare the data again from its source, with --skip-bad to leave it out"
    if index.split == "train":
        again += ", or train without it by data.on_error=quarantine"
    if len(content) != index.bytes[sample] or zlib.crc32(content) != index.crc32[sample]:
        return f"its content changed since it was indexed: restore it or {again}"
    return f"its content is what was indexed: {again}"
