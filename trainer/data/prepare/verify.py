"""`reste prepare verify`: every byte of a data set against its index, every image decoded."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from trainer.data.background import ordered_map
from trainer.data.index import DamagedIndexError, Index, index_folder, load_index, load_summary
from trainer.data.prepare.check import check_content, pillow_warnings
from trainer.data.prepare.folder import Progress
from trainer.data.prepare.targets import header_of, padded
from trainer.data.storage import Files, Shards, open_storage, shard_path
from trainer.errors import DataError

_END = 2 * tarfile.BLOCKSIZE
_TAIL_LOOKED_AT = 1 << 20


@dataclass(frozen=True)
class Damage:
    """A place that is not as it was prepared.

    Attributes:
        file: image, tar file, or file of the index.
        what: what is wrong, in words.
        byte: where in a tar file; None elsewhere.
        image: name of the image that lies there; None if it is no image's.
    """

    file: str
    what: str
    byte: int | None = None
    image: str | None = None

    def __str__(self) -> str:
        place = "" if self.byte is None else f", byte {self.byte}"
        return f"{self.file}{place}{f' ({self.image})' if self.image else ''}: {self.what}"


@dataclass
class Verdict:
    """What was looked at, and what of it is damaged."""

    images: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)


def verify(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> Verdict:
    """Compare lengths and checksums with the index, decode every image, look at every header of the tar files.

    Args:
        root: a prepared data set; nothing is written.
        workers: threads; None for one per core.
        progress: called with (images done, images in all).

    Raises:
        DataError: there is no prepared data set.
    """
    root, verdict = Path(root).absolute(), Verdict()
    indexes = list(_indexes(root, verdict))
    total = sum(map(len, indexes))
    workers = workers or os.cpu_count() or 1
    with pillow_warnings(), ThreadPoolExecutor(workers, thread_name_prefix="verify") as executor:
        for index in indexes:
            with closing(open_storage(index, root)) as storage:
                look = _looker(index, storage)
                for found in ordered_map(executor, look, _order(index, root, verdict), window=4 * workers):
                    verdict.damaged += found
                    verdict.images += 1
                    if progress is not None:
                        progress(verdict.images, total)
            verdict.bytes += int(index.bytes.sum())
    return verdict


def _indexes(root: Path, verdict: Verdict) -> Iterator[Index]:
    try:
        summary = load_summary(root)
    except DamagedIndexError as error:
        verdict.damaged.append(Damage(str(error.file), error.reason))
        return
    for split in summary.digests:
        try:
            yield load_index(root, split)
        except DamagedIndexError as error:
            verdict.damaged.append(Damage(str(error.file), error.reason))
    known = {damage.file for damage in verdict.damaged}
    for name, wanted in summary.sha256.items():
        file = index_folder(root) / name
        # A container can be damaged where its arrays are not.
        if str(file) not in known and hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            verdict.damaged.append(Damage(str(file), "it is not byte for byte what was written"))


def _looker(index: Index, storage: Files | Shards) -> Callable[[int], list[Damage]]:
    def look(sample: int) -> list[Damage]:
        what = _content(index, storage, sample)
        if isinstance(storage, Files):
            return [] if what is None else [Damage(storage.where(sample), what)]
        found = list(_frame(index, storage, sample))
        if what is not None:
            found.append(Damage(str(storage.file(sample)), what, storage.offset(sample), index.paths[sample]))
        return found

    return look


def _content(index: Index, storage: Files | Shards, sample: int) -> str | None:
    """What is wrong with the content of a sample."""
    try:
        length, wanted = storage.length(sample), int(index.bytes[sample])
        if length != wanted:  # told without taking memory for it
            return f"it has {length} bytes, {wanted} when it was indexed"
        content = storage.read(sample)
    except OSError as error:
        return error.strerror or str(error)
    differs = zlib.crc32(content) != index.crc32[sample]
    facts = check_content(content, PurePosixPath(index.paths[sample]).suffix.lower())
    if facts.bad is not None:
        return f"{'its content changed since it was indexed; ' if differs else ''}{facts.bad}"
    if differs:
        return "its content changed since it was indexed"
    if (facts.height, facts.width) != (index.heights[sample], index.widths[sample]):
        return "it has another size in pixels than the index says"
    return None


def _order(index: Index, root: Path, verdict: Verdict) -> Iterator[int]:
    """All samples, those of shards in the order of their places; none of a shard that is not there."""
    if index.places is None:
        yield from range(len(index))
        return
    shards, offsets = index.places.shards, index.places.offsets
    order = np.lexsort((offsets, shards))
    for number in np.unique(shards).tolist():
        here = order[shards[order] == number]
        last = int(here[-1])
        damage = _end(shard_path(root, index.split, number), padded(int(offsets[last]) + int(index.bytes[last])))
        if damage is not None:
            verdict.damaged.append(damage)
        if damage is None or damage.byte is not None:
            yield from here.tolist()


def _frame(index: Index, shards: Shards, sample: int) -> Iterator[Damage]:
    """Header before and zeros behind the content of a sample."""
    path, length, at = index.paths[sample], int(index.bytes[sample]), shards.offset(sample)
    header = header_of(path, length)
    end = at + length
    for start, wanted, what in (
        (at - len(header), header, "the header is damaged"),
        (end, bytes(padded(end) - end), "what fills up the last block is damaged"),
    ):
        try:
            if shards.peek(sample, start, len(wanted)) != wanted:
                yield Damage(str(shards.file(sample)), what, start, path)
        except OSError as error:
            yield Damage(str(shards.file(sample)), error.strerror or str(error), start, path)


def _end(file: Path, end: int) -> Damage | None:
    """What is wrong with a tar file behind its last image; without a byte, if it cannot be read at all."""
    try:
        with open(file, "rb") as opened:
            opened.seek(end)
            tail = opened.read(_TAIL_LOOKED_AT)
    except OSError as error:
        return Damage(str(file), error.strerror or str(error))
    if len(tail) < _END:
        return Damage(str(file), "it is cut off, its end mark is missing", end)
    if any(tail) and not _is_header(tail):
        return Damage(str(file), "the end mark is damaged", end)
    return None


def _is_header(tail: bytes) -> bool:
    # Images that a second attempt at preparing stored anew may be left over, unused.
    try:
        tarfile.TarInfo.frombuf(tail[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def refuse_damage(root: Path, verdict: Verdict) -> None:
    """End in one line if anything is damaged.

    Raises:
        DataError: saying how much, and what mends it.
    """
    if verdict.damaged:
        raise DataError(
            f"{len(verdict.damaged)} places of {root} are damaged: restore them, or prepare it again (with --skip-bad "
            "to leave out what cannot be decoded)"
        )
