"""The index of a data set: every image's path, label, size, length and checksum, from `reste prepare`.

Files: `ROOT/index/<split>.npz` (arrays, no pickles) and `ROOT/index/index.json` (classes, digests, odd and
left-out files); where images lie in tar files, `ROOT/index/<split>.places.npz` says where. The JSON file is
written last and names the digest of every other and of itself, so that a half-made or damaged index is never taken
for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter

from trainer.data.arrays import read_arrays
from trainer.data.paths import Paths
from trainer.data.sound import unsound
from trainer.errors import DataError

INDEX_VERSION = 1
BEGUN = "begun.jsonl"
"""Below `index/` while images are being written to the root: nothing there is whole."""
_LISTED = 1000
_COLUMNS = ("labels", "heights", "widths", "bytes", "crc32")


@dataclass(frozen=True, eq=False)
class Places:
    """Where the N images of a split lie in the tar files of `ROOT/shards/`.

    Attributes:
        shards: int32 (N,) number of the tar file.
        offsets: int64 (N,) first byte of the image's content in it; its length is the index's.
    """

    shards: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    @property
    def digest(self) -> str:
        """SHA-256 over both columns."""
        columns = (self.shards.astype("<i4").tobytes(), self.offsets.astype("<i8").tobytes())
        return hashlib.sha256(b"".join(columns)).hexdigest()


@dataclass(frozen=True, eq=False)
class Index:
    """One split of a data set of N images; a sample's id is its position here.

    Attributes:
        split: "train" or "val".
        paths: N names relative to the data root, with "/" between the parts.
        labels: int64 (N,) positions in `classes`.
        heights, widths: int32 (N,) pixels, as stored (EXIF rotation not applied).
        bytes: int64 (N,) file lengths.
        crc32: uint32 (N,) checksum of each file.
        classes: class names in label order.
        places: where the images lie in tar files; None if they are files of their own.
    """

    split: str
    paths: Paths
    labels: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    bytes: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]
    classes: list[str]
    places: Places | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 over everything but `places`: equal content has equal digests, however it is stored."""
        digest = hashlib.sha256(json.dumps([self.split, self.classes]).encode())
        digest.update(self.paths.offsets.astype("<i8").tobytes())
        digest.update(self.paths.blob)
        for name in _COLUMNS:
            column = getattr(self, name)
            digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class OddFile:
    """A file worth knowing of: usable but unusual, or left out.

    Attributes:
        path: name relative to the data root.
        what: what is odd about it, in words.
    """

    path: str
    what: str


@dataclass(frozen=True)
class Summary:
    """What `index.json` says about a data set.

    Attributes:
        classes: class names in label order.
        samples: number of images of each split.
        digests: digest of each split's index.
        odd: usable but unusual files, the first thousand of each kind.
        odd_counts: how many files there are of each kind.
        quarantined: files left out because they cannot be decoded.
        places: digest of each split's places in tar files; empty if images are files of their own.
        max_side: pixels that no side exceeds, because larger images were shrunk; None if none were.
        source: what the images were taken from, in words; empty if they were indexed where they lay.
        sha256: of each other file of the index, byte for byte, as they were written.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    classes: list[str]
    samples: dict[str, int]
    digests: dict[str, str]
    odd: list[OddFile] = field(default_factory=list)
    odd_counts: dict[str, int] = field(default_factory=dict)
    quarantined: list[OddFile] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    max_side: int | None = None
    source: str = ""
    sha256: dict[str, str] = field(default_factory=dict)


_SUMMARY = TypeAdapter(Summary)


def index_folder(root: Path) -> Path:
    """Where the index of the data set at `root` lives."""
    return root / "index"


def save_indexes(
    root: Path,
    indexes: Sequence[Index],
    *,
    odd: Sequence[OddFile] = (),
    quarantined: Sequence[OddFile] = (),
    max_side: int | None = None,
    source: str = "",
) -> Summary:
    """Write the index of a whole data set, each file whole or not at all, `index.json` last."""
    folder = index_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for index in indexes:
        arrays: dict[str, Any] = {name: getattr(index, name) for name in _COLUMNS}
        arrays["path_blob"] = np.frombuffer(index.paths.blob, dtype=np.uint8)
        arrays["path_offsets"] = index.paths.offsets
        written.append(write_atomically(folder / f"{index.split}.npz", partial(np.savez, **arrays)))
        if index.places is not None:
            arrays = {"shards": index.places.shards, "offsets": index.places.offsets}
            written.append(write_atomically(folder / f"{index.split}.places.npz", partial(np.savez, **arrays)))
    summary = Summary(
        classes=indexes[0].classes,
        samples={index.split: len(index) for index in indexes},
        digests={index.split: index.digest for index in indexes},
        odd=_first_of_each_kind(odd),
        odd_counts=dict(Counter(file.what for file in odd)),
        quarantined=list(quarantined),
        places={index.split: index.places.digest for index in indexes if index.places is not None},
        max_side=max_side,
        source=source,
        sha256={file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in written},
    )
    found = asdict(summary)
    text = json.dumps({"version": INDEX_VERSION, **found, "digest": _digest_of(found)}, indent=1) + "\n"
    write_atomically(folder / "index.json", lambda file: file.write(text.encode()))
    return summary


def _first_of_each_kind(odd: Sequence[OddFile]) -> list[OddFile]:
    seen: Counter[str] = Counter()
    kept = []
    for file in odd:
        seen[file.what] += 1
        if seen[file.what] <= _LISTED:
            kept.append(file)
    return kept


class DamagedIndexError(DataError):
    """A file of an index is missing, damaged or not to be trusted.

    Attributes:
        file: which.
        reason: what is wrong with it, in words.
    """

    def __init__(self, file: Path, reason: str, fix: str) -> None:
        super().__init__(f"{file} {reason}: {fix}")
        self.file, self.reason = file, reason

    def __reduce__(self) -> tuple[type[DataError], tuple[str]]:
        return DataError, (str(self),)


def load_summary(root: Path) -> Summary:
    """Read `index.json`.

    Raises:
        DataError: there is no data set, no index, or one this version cannot read.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"data root {root} does not exist: set data.root to the folder with train/ and val/")
    file, fix = index_folder(root) / "index.json", _fix(root)
    try:
        found = json.loads(file.read_bytes())
        version, digest = found.pop("version"), found.pop("digest", None)
        if version != INDEX_VERSION:
            raise DamagedIndexError(file, f"has version {version}, wanted {INDEX_VERSION}", fix)
        summary = _SUMMARY.validate_json(json.dumps(found))
    except FileNotFoundError:
        raise DataError(f"{root} has no index: {fix}") from None
    except DataError:
        raise
    except Exception as error:  # a damaged file can be any JSON or none
        raise DamagedIndexError(file, f"cannot be read ({type(error).__name__})", fix) from error
    # Those of before it was written are taken without.
    if digest is not None and digest != _digest_of(found):
        raise DamagedIndexError(file, "does not have the digest that it names", fix)
    return summary


def _digest_of(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _fix(root: Path) -> str:
    if (root / "shards").is_dir() or (index_folder(root) / BEGUN).exists():
        return "start the reste prepare that made it again, with the same SOURCE"
    return f"run: reste prepare folder {root}"


def load_index(root: Path, split: str) -> Index:
    """Read and verify the index of one split.

    Raises:
        DataError: missing, damaged, half made, without that split, or with paths that leave the root; the message
            says what to run.
    """
    root = Path(root)
    summary = load_summary(root)
    fix = _fix(root)
    if split not in summary.digests:
        raise DataError(f"{root} has no split {split!r}, only {', '.join(summary.digests)}: {fix}")
    file, places_file = (index_folder(root) / f"{split}{suffix}.npz" for suffix in ("", ".places"))
    try:
        arrays = read_arrays(file)
        paths = Paths(arrays.pop("path_blob").tobytes(), arrays.pop("path_offsets"))
        index = Index(split=split, paths=paths, classes=summary.classes, **arrays)
        reason = unsound(index)
    except Exception as error:  # a damaged file raises any kind
        raise DamagedIndexError(file, f"cannot be read ({type(error).__name__})", fix) from error
    if reason is None and index.digest != summary.digests[split]:
        reason = "it does not have the digest recorded for it"
    if reason is not None:
        raise DamagedIndexError(file, f"cannot be used ({reason})", fix)
    return index if split not in summary.places else _with_places(index, places_file, summary.places[split], fix)


def _with_places(index: Index, file: Path, digest: str, fix: str) -> Index:
    try:
        index = replace(index, places=Places(**read_arrays(file)))
        reason = unsound(index)
    except Exception as error:  # a damaged file raises any kind
        raise DamagedIndexError(file, f"cannot be read ({type(error).__name__})", fix) from error
    assert index.places is not None
    if reason is None and index.places.digest != digest:
        reason = "it does not have the digest recorded for it"
    if reason is not None:
        raise DamagedIndexError(file, f"cannot be used ({reason})", fix)
    return index


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a file under a temporary name, fsync it, then rename it into place; returns its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
