"""Reading pickles of arrays that others made, without running what they may hold."""

from __future__ import annotations

import codecs
import io
import pickle
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]

from trainer.data.faults import one_line
from trainer.errors import DataError

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): codecs.encode,
}
"""All that a pickled array of numbers needs; `_codecs.encode` is how Python 3 writes bytes for Python 2,
`_frombuffer` how it writes arrays from protocol 5 on."""


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs") from None


def load_arrays(content: bytes, *, where: str) -> Any:
    """What a pickle of numbers, text, lists, dictionaries and arrays holds; text of Python 2 comes as bytes.

    Args:
        content: of the file.
        where: its place, in words.

    Raises:
        DataError: it is damaged, or asks for anything else, which is not run.
    """
    try:
        return _Arrays(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises any kind
        raise DataError(f"{where} cannot be unpickled ({one_line(error)}): get the official file again") from error
