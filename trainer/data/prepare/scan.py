"""Checking all files of a data set in threads, in order, so that a killed scan goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from types import TracebackType

from trainer.data.background import ordered_map
from trainer.data.prepare.check import FileFacts, check_file, pillow_warnings

_CHUNK = 16


class Memory:
    """A file of what a scan found so far; one line per image, believed while length and time of the image
    hold.

    Only usable images are remembered: a bad one is always looked at again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._facts = dict(_read(file))
        self._out = open(file, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def recall(self, root: Path, name: str) -> FileFacts | None:
        """What was found before, if the file has not changed since."""
        facts = self._facts.get(name)
        if facts is None:
            return None
        try:
            status = os.stat(root / name)
        except OSError:
            return None
        return facts if (status.st_size, status.st_mtime_ns) == (facts.bytes, facts.mtime_ns) else None

    def keep(self, names: Sequence[str], found: Sequence[FileFacts]) -> None:
        """Write down what was found, up to the operating system."""
        usable = [(name, facts) for name, facts in zip(names, found, strict=True) if facts.bad is None]
        self._out.writelines(json.dumps([name, *astuple(facts)]) + "\n" for name, facts in usable)
        self._out.flush()


def _read(file: Path) -> Iterator[tuple[str, FileFacts]]:
    if not file.exists():
        return
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                name, size, mtime_ns, height, width, crc32, odd, bad = json.loads(line)
                facts = FileFacts(size, mtime_ns, height, width, crc32, tuple(odd), bad)
            except (ValueError, TypeError):  # the line that was being written when the scan was killed
                continue
            yield name, facts


def scan(
    root: Path,
    names: Sequence[str],
    *,
    memory: Memory,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[FileFacts]:
    """Facts of every named file, in order.

    Args:
        root: data root that the names are relative to.
        names: files to decode.
        memory: of this scan or of one that was killed.
        workers: threads; Pillow releases the interpreter lock while it decodes.
        progress: called with (files done, files in all), from this thread.
    """

    def look(chunk: Sequence[str]) -> list[tuple[FileFacts, bool]]:
        recalled = [memory.recall(root, name) for name in chunk]
        return [(facts or check_file(root / name), facts is None) for name, facts in zip(chunk, recalled, strict=True)]

    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    results: list[FileFacts] = []
    with pillow_warnings(), ThreadPoolExecutor(workers, thread_name_prefix="check") as executor:
        for chunk, looked in zip(chunks, ordered_map(executor, look, chunks, window=4 * workers), strict=True):
            new = [(name, facts) for name, (facts, is_new) in zip(chunk, looked, strict=True) if is_new]
            memory.keep([name for name, _ in new], [facts for _, facts in new])
            results += (facts for facts, _ in looked)
            if progress is not None:
                progress(len(results), len(names))
    return results
