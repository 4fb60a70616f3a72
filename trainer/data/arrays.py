"""Files of arrays (`.npz`) from anywhere: nothing is unpickled, and no more memory taken than the file is long."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy


def read_arrays(file: Path) -> dict[str, Any]:
    """The arrays of a file that `np.savez` wrote, by name; read-only.

    Raises:
        ValueError: a member is compressed, holds objects, or is not as long as its header says.
        Exception: of many kinds, if it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        found: dict[str, Any] = {}
        for member in archive.infolist():
            # A few compressed bytes can unpack to any number.
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > file.stat().st_size:
                raise ValueError(f"{member.filename} in it is compressed")
            found[member.filename.removesuffix(".npy")] = _array(member.filename, archive.read(member))
        return found


def _array(name: str, content: bytes) -> npt.NDArray[np.generic]:
    opened = io.BytesIO(content)
    if npy.read_magic(opened) != (1, 0):
        raise ValueError(f"{name} in it is of another version")
    shape, is_fortran, dtype = npy.read_array_header_1_0(opened)
    at = opened.tell()
    if dtype.hasobject or is_fortran or math.prod(shape) * dtype.itemsize != len(content) - at:
        raise ValueError(f"{name} in it is not the array that its header promises")
    return np.frombuffer(content, dtype, offset=at).reshape(shape)
