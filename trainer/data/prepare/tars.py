"""Reading tar archives in one pass, with their checksum, naming the byte where one is damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from trainer.data.faults import one_line
from trainer.data.sound import stays_inside
from trainer.errors import DataError

_BUFFER = 1 << 20
Readable = io.RawIOBase | gzip.GzipFile
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error)
MOST_BYTES = 512 << 20
"""Of one member that is read. An uncompressed image of the most pixels that are accepted is smaller."""
_MOST_HEADER = 1 << 20


class OnePass(io.RawIOBase):
    """A file whose bytes all go through MD5 once, in order, whatever is skipped or looked at twice.

    Args:
        path: file to read.
        most: most bytes of one read; None for no limit. With little, the position tells where a compressed
            stream broke.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(self, path: Path, *, most: int | None = None) -> None:
        super().__init__()
        self.path = path
        try:
            self._file = open(path, "rb", buffering=_BUFFER)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror}): make it readable") from error
        self._most = most
        self._digest = hashlib.md5(usedforsecurity=False)
        self._seen = 0
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes; forward at the price of reading what lies between."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position counted from the beginning or from here."""
        assert whence in (io.SEEK_SET, io.SEEK_CUR)
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, less at the end of the file."""
        assert size >= 0
        if self._most is not None:
            size = min(size, self._most)
        while self._seen < self._at and self._take(min(self._at - self._seen, _BUFFER)):
            pass
        found = self._again(min(size, self._seen - self._at)) if self._at < self._seen else b""
        if self._at == self._seen:
            new = self._take(size - len(found))
            self._at += len(new)
            found += new
        return found

    def _again(self, size: int) -> bytes:
        self._file.seek(self._at)
        found = self._file.read(size)
        self._file.seek(self._seen)
        self._at += len(found)
        return found

    def _take(self, size: int) -> bytes:
        found = self._file.read(size)
        self._digest.update(found)
        self._seen += len(found)
        return found

    def md5(self) -> str:
        """Read what is left; the checksum of the whole file in hexadecimal digits."""
        while self._take(_BUFFER):
            pass
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def check_md5(file: OnePass, wanted: str | None) -> None:
    """Read a file to its end and compare its checksum.

    Raises:
        DataError: it differs.
    """
    found = file.md5()
    if wanted is not None and found != wanted:
        raise DataError(
            f"{file.path} has MD5 {found}, the published file has {wanted}: get it again and start again (what is "
            "done is kept and compared), or accept it with --expect any"
        )


class _Part(io.RawIOBase):
    """A stretch of a file as a file; unlike tarfile's own, it never reads ahead, so that errors tell the place."""

    def __init__(self, file: Readable, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size = file, start, size
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        self._file.seek(self._start + self._at)
        found = self._file.read(max(min(size, self._size - self._at), 0)) or b""
        self._at += len(found)
        return found


class _Headers(io.RawIOBase):
    """A file as tarfile reads it: long names and the like have a length of their own, which can be any."""

    def __init__(self, file: Readable) -> None:
        super().__init__()
        self._file = file

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size) or b""


@dataclass(frozen=True)
class Member:
    """A file in an archive, to be read before the next member is asked for.

    Attributes:
        name: as the archive gives it.
        file: the archive.
        offset: first byte of its content in the archive.
        size: bytes.
        where: its place, in words.
    """

    name: str
    file: Readable
    offset: int
    size: int
    where: str

    def read(self) -> bytes:
        """The whole content.

        Raises:
            DataError: the archive is damaged here, or the member larger than any image.
        """
        if self.size > MOST_BYTES:
            raise DataError(f"{self.where} claims {self.size:,} bytes, more than any image has: take it out")
        try:
            self.file.seek(self.offset)
            content = self.file.read(self.size) or b""
        except _BROKEN as error:
            raise _damage(self.where, error) from error
        if len(content) < self.size:
            raise _damage(self.where, EOFError("the archive ends within it"))
        return content


Place = Callable[[int], str]


def members(file: Readable, where: str, *, place: Place = "byte {}".format) -> Iterator[Member]:
    """The plain files of an archive, in order.

    Args:
        file: the archive, not compressed, at its beginning.
        where: its place in words, for errors.
        place: words for a position in the archive.

    Raises:
        DataError: a header is damaged, or the archive ends early; naming the byte. Or it holds links, or names that
            lead out of it.
    """
    at = 0
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
            for info in archive:
                if archive.offset <= at:
                    raise tarfile.ReadError("a header claims a negative length")
                at = archive.offset
                here = f"{where}, {info.name} at {place(info.offset)}"
                _check_kind(info, here)
                if info.isreg():
                    yield Member(info.name, file, info.offset_data, info.size, here)
            at = archive.offset
            file.seek(at)
            _check_end(file)
    except DataError:
        raise
    except Exception as error:  # tarfile lets many kinds out of a damaged header
        raise _damage(f"{where} at {place(at)}", error) from error


def _check_kind(info: tarfile.TarInfo, where: str) -> None:
    if not stays_inside(info.name):
        raise DataError(f"{where} has a name that leads out of the archive: take it out")
    if info.issparse() or not (info.isreg() or info.isdir()):
        raise DataError(f"{where} is a link or no plain file: pack the archive again without links")


def _check_end(file: Readable) -> None:
    # Tarfile takes a damaged header for the end of an archive, and one of zeros, which a lost block of a disk leaves,
    # is what an archive really ends with. After the end of a whole one come zeros to the end of the file.
    block = file.read(tarfile.BLOCKSIZE) or b""
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends here, without an end mark")
    if any(block):
        raise tarfile.ReadError("no header can be read here")
    while block := file.read(_BUFFER) or b"":
        if block.count(0) < len(block):
            raise tarfile.ReadError("zeros stand where a header should, and more follows")


def nested(member: Member, outer: Place = "byte {}".format) -> Iterator[Member]:
    """The files of an archive that is a member of another; positions are those of the outer one.

    Raises:
        DataError: as `members`.
    """
    part = _Part(member.file, member.offset, member.size)
    return members(part, member.where, place=lambda at: outer(member.offset + at))


def unpacked_members(file: OnePass) -> Iterator[Member]:
    """The files of a `.tar.gz`.

    Raises:
        DataError: as `members`, or the compression is damaged; naming the compressed byte near it.
    """
    where = str(file.path)
    near = lambda: f"byte {file.tell()} of the compressed file"  # noqa: E731
    with gzip.GzipFile(fileobj=file) as unpacked:
        yield from members(unpacked, where, place=lambda at: f"byte {at} unpacked, near {near()}")
        try:
            while unpacked.read(_BUFFER):
                pass
        except _BROKEN as error:
            raise _damage(f"{where} near {near()}", error) from error


def _damage(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where} is damaged ({one_line(error)}): get the file again and start again, what is done is kept"
    )
