"""From a source of images to an indexed data set: decoded, put in place and remembered, one after the other."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from trainer.data.background import ordered_map
from trainer.data.index import BEGUN, Index, OddFile, Places, Summary, index_folder, load_summary, save_indexes
from trainer.data.prepare.begun import Begun, Settings, Stored
from trainer.data.prepare.check import check_content, pillow_warnings
from trainer.data.prepare.folder import Progress, build_index, refusal
from trainer.data.prepare.shrink import shrink
from trainer.data.prepare.source import Expectation, Item, Source
from trainer.data.prepare.targets import SHARD_BYTES, FolderTarget, ShardTarget, Target
from trainer.errors import DataError


@dataclass(frozen=True)
class Options:
    """How to store a data set.

    Attributes:
        form: "folder" or "shards".
        max_side: shrink images so that no side exceeds as many pixels; None to keep them as they are.
        workers: threads; None for one per core.
        skip_bad: leave out images that cannot be decoded, and say so in the index, instead of refusing.
        shard_bytes: a tar file is ended once it is as long.
    """

    form: str = "folder"
    max_side: int | None = None
    workers: int | None = None
    skip_bad: bool = False
    shard_bytes: int = SHARD_BYTES


def store(
    source: Source,
    given: Path,
    root: Path,
    options: Options,
    *,
    expect: Expectation | None,
    progress: Progress | None = None,
) -> Summary:
    """Put all images of a source in their places below `root` and index them, decoding every one fully.

    A killed call goes on where it was: what it had stored is compared with the source by checksum and kept.
    The index appears when everything is complete. A call for a data set that is complete does nothing.

    Args:
        source: the images.
        given: the folder or archive that the user named.
        root: folder to make; may exist if it is empty or holds what a killed call began.
        options: how to store.
        expect: what the source is known to hold; None to take what comes.
        progress: called with (done, total), in the source's unit.

    Raises:
        DataError: the source is damaged or not what is expected, an image cannot be decoded, the root holds
            something else or cannot be written.
    """
    root = Path(root).absolute()
    settings = Settings(str(Path(given).absolute()), options.form, options.max_side)
    try:
        complete = _complete(root, settings)
        if complete is not None:
            if expect is not None:
                expect.check_counts(str(root), complete.samples)
            return complete
        if expect is not None and source.counts is not None:
            expect.check_counts(source.what, source.counts)
        with Begun(root, settings) as begun:
            taken = _Taken(expect)
            _take_all(source, root, options, begun, taken, progress)
            taken.check(source.what)
            for stump in index_folder(root).glob(".*.tmp"):  # of a call that was killed while it wrote the index
                stump.unlink()
            summary = _save(taken, root, options, source.what)
            begun.remove()
    except OSError as error:
        raise DataError(
            f"cannot write {root} ({error.strerror or error}): mend it and start again, what is done is kept"
        ) from error
    return summary


def _complete(root: Path, settings: Settings) -> Summary | None:
    folder = index_folder(root)
    if not root.exists() or not any(root.iterdir()):
        return None
    if (folder / "index.json").exists():
        found = load_summary(root)
        form = "shards" if found.places else "folder"
        if found.source and (form, found.max_side) == (settings.form, settings.max_side):
            (folder / BEGUN).unlink(missing_ok=True)
            return found
        raise DataError(f"{root} holds another data set, or the same in another form: choose another folder")
    if [path.name for path in root.iterdir()] == ["index"] or (folder / BEGUN).exists():
        return None
    raise DataError(f"{root} is not empty and no reste prepare began it: choose another folder")


@dataclass(frozen=True)
class _Looked:
    item: Item
    content: bytes
    stored: Stored | None
    is_new: bool
    bad: str | None


class _Taken:
    """What was found in a source."""

    def __init__(self, expect: Expectation | None) -> None:
        self._expect = expect
        self.stored: list[Stored] = []
        self.bad: list[tuple[OddFile, str]] = []
        self.labels: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
        self.known: dict[str, str] = {}

    def count(self, item: Item) -> None:
        """Remember the label of an image, usable or not."""
        self.labels[item.split][item.label] += 1
        if self._expect is not None and item.name in self._expect.known:
            self.known[item.name] = item.label

    def check(self, what: str) -> None:
        """Refuse what cannot be a data set, or is not the one that is expected."""
        for split, labels in self.labels.items():
            if not labels:
                raise DataError(f"{what} holds no {split} images: complete it")
        foreign = sorted(self.labels["train"].keys() ^ self.labels["val"].keys())
        if foreign:
            raise DataError(f"{what} has class {foreign[0]} in one split only: both need the same classes")
        if self._expect is not None:
            self._expect.check_counts(what, {split: labels.total() for split, labels in self.labels.items()})
            self._expect.check_labels(what, self.labels, self.known)


def _take_all(
    source: Source, root: Path, options: Options, begun: Begun, taken: _Taken, progress: Progress | None
) -> None:
    workers = options.workers or os.cpu_count() or 1
    target: Target = FolderTarget(root)
    if options.form == "shards":
        target = ShardTarget(root, begun.stored.values(), shard_bytes=options.shard_bytes)
    look = _looker(target, begun.stored, options.max_side)
    with pillow_warnings(), closing(target), ThreadPoolExecutor(workers, thread_name_prefix="prepare") as executor:
        for looked in ordered_map(executor, look, _checked(source), window=4 * workers):
            item = looked.item
            taken.count(item)
            if looked.stored is None:
                taken.bad.append((OddFile(item.path, looked.bad or ""), item.where))
            elif looked.is_new:
                shard, offset = target.append(item.path, looked.content)
                stored = replace(looked.stored, shard=shard, offset=offset)
                begun.keep(stored)
                taken.stored.append(stored)
            else:
                taken.stored.append(looked.stored)
            if progress is not None:
                progress(item.done, source.total)
    if taken.bad and not options.skip_bad:
        named = [OddFile(where, bad.what) for bad, where in taken.bad]
        raise refusal(named, len(taken.stored) + len(named))


def _checked(source: Source) -> Iterator[Item]:
    """The source's items, whose paths are sound and differ from each other."""
    seen: set[str] = set()
    for item in source.items():
        parts = item.path.split("/")
        hidden = any(part.startswith(".") or part == "" or "\0" in part for part in parts)
        if hidden or "/" in item.label:
            raise DataError(f"{item.where} cannot be stored as {item.path!r}: rename it")
        if item.path in seen:
            raise DataError(f"{item.where} is {item.path}, which another image is already: remove one of them")
        seen.add(item.path)
        yield item


def _looker(target: Target, before: dict[str, Stored], max_side: int | None) -> Callable[[Item], _Looked]:
    def look(item: Item) -> _Looked:
        try:
            taken = item.read()
        except OSError as error:
            return _Looked(item, b"", None, True, error.strerror or str(error))
        path, size, crc32 = item.path, len(taken), zlib.crc32(taken)
        known = before.get(path)
        if known is not None and (known.taken_bytes, known.taken_crc32) == (size, crc32) and target.holds(known):
            return _Looked(item, b"", known, False, None)
        extension = PurePosixPath(path).suffix.lower()
        facts = check_content(taken, extension)
        content = taken
        if facts.bad is None and max_side is not None and max(facts.height, facts.width) > max_side:
            content = shrink(taken, extension, max_side)
            facts = replace(check_content(content, extension), odd=facts.odd)
        if facts.bad is not None:
            return _Looked(item, b"", None, True, facts.bad)
        target.write(path, content, item.file if content is taken else None)
        odd = facts.odd
        stored = Stored(path, size, crc32, facts.bytes, facts.crc32, facts.height, facts.width, odd)
        return _Looked(item, content, stored, True, None)

    return look


def _save(taken: _Taken, root: Path, options: Options, source: str) -> Summary:
    classes = sorted(taken.labels["train"])
    numbers = {name: number for number, name in enumerate(classes)}
    indexes: list[Index] = []
    for split in ("train", "val"):
        # The order of `reste prepare folder`: by class, then by name, folder by folder.
        images = sorted((image for image in taken.stored if image.path.startswith(f"{split}/")), key=_parts)
        index = build_index(
            split, [(image.path, numbers[image.path.split("/")[1]], image) for image in images], classes
        )
        if options.form == "shards":
            shards = np.array([image.shard for image in images], dtype=np.int32)
            offsets = np.array([image.offset for image in images], dtype=np.int64)
            index = replace(index, places=Places(shards, offsets))
        indexes.append(index)
    return save_indexes(
        root,
        indexes,
        odd=[OddFile(image.path, what) for image in taken.stored for what in image.odd],
        quarantined=[bad for bad, _ in taken.bad],
        max_side=options.max_side,
        source=source,
    )


def _parts(image: Stored) -> list[str]:
    return image.path.split("/")
