"""Decoding one file fully, and noting what is unusual about it."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.data.faults import one_line

_EXTENSIONS = {
    "JPEG": (".jpeg", ".jpg"),
    "MPO": (".jpeg", ".jpg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
"""The formats that every loader decodes to the same pixels, with the extensions they go by."""

_MODES = {
    "RGB": None,
    "L": "grayscale",
    "1": "black and white",
    "P": "palette colours",
    "CMYK": "CMYK colours",
    "RGBA": "alpha channel, dropped",
    "LA": "grayscale with alpha channel, dropped",
}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class FileFacts:
    """What is known of one file.

    Attributes:
        bytes: length.
        mtime_ns: time of last change; with the length it tells whether the facts still hold.
        height, width: pixels as stored; 0 if `bad`.
        crc32: checksum of the content.
        odd: what is unusual but harmless.
        bad: why it cannot be used; None if it can.
    """

    bytes: int
    mtime_ns: int
    height: int
    width: int
    crc32: int
    odd: tuple[str, ...]
    bad: str | None


def check_file(path: Path) -> FileFacts:
    """Read and decode a whole file; never raises for what is in it."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        return FileFacts(0, 0, 0, 0, 0, (), error.strerror or one_line(error))
    return check_content(content, path.suffix.lower(), mtime_ns=status.st_mtime_ns)


def check_content(content: bytes, extension: str, *, mtime_ns: int = 0) -> FileFacts:
    """Decode the content of a file with that extension, in small letters; never raises for what is in it."""
    crc32 = zlib.crc32(content)
    try:
        height, width, odd = _decode(content, extension)
    except Exception as error:  # Pillow's decoders raise many kinds
        bad = "the file is empty" if not content else one_line(error)
        return FileFacts(len(content), mtime_ns, 0, 0, crc32, (), bad)
    return FileFacts(len(content), mtime_ns, height, width, crc32, tuple(odd), None)


def _decode(content: bytes, extension: str) -> tuple[int, int, list[str]]:
    try:
        image = Image.open(io.BytesIO(content))
    except Image.UnidentifiedImageError:
        raise ValueError("it is no image that can be read") from None
    with image:
        if image.format not in _EXTENSIONS:
            raise ValueError(f"{image.format} images are not supported, convert it to JPEG or PNG")
        if image.mode not in _MODES:
            raise ValueError(f"pixels of kind {image.mode} are not supported, convert it to 8-bit RGB")
        image.convert("RGB")
        odd = [] if extension in _EXTENSIONS[image.format] else [f"{image.format} named {extension}"]
        colours = _MODES[image.mode]
        odd += [colours] if colours else []
        orientation = _orientation(image)
        odd += [f"EXIF orientation {orientation}, not applied"] if orientation != 1 else []
        return image.height, image.width, odd


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data is common and does not touch the pixels
        return 1
    return found if isinstance(found, int) and 2 <= found <= 8 else 1


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Within: a decompression bomb is an error, Pillow's other remarks (broken EXIF, palettes) are not shown.

    Warning filters belong to the process: enter this in the main thread, around the threads that decode.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
