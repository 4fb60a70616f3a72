"""The compiled part of a packed network's computation: built on first use, kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from trainer.errors import ConfigError

SOURCE = Path(__file__).with_name("binary_conv.cpp")
# Nothing is contracted or reordered: what is rounded, and where, stands in the source.
FLAGS = ("-std=c++17", "-O3", "-mavx2", "-mfma", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared")


@cache
def kernels() -> ctypes.CDLL:
    """The compiled functions of `binary_conv.cpp`.

    Raises:
        ConfigError: this processor has no AVX2, there is no C++ compiler, or it fails.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        raise ConfigError("the fast binary convolution needs a processor with AVX2: use the reader made of torch's own")
    return _declared(ctypes.CDLL(str(_library())))


def _library() -> Path:
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++") or "g++"]
    digest = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, FLAGS)).encode()).hexdigest()[:16]
    library = _cache_folder() / f"binary_conv_{digest}.so"
    if library.is_file():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Two processes may compile at once; each puts a whole library in place.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            _compile(compiler, made)
            made.replace(library)
    except OSError as error:
        raise ConfigError(f"{library.parent} is not writable ({error.strerror}): set XDG_CACHE_HOME") from error
    return library


def _cache_folder() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(folder) if Path(folder).is_absolute() else Path("~/.cache").expanduser()) / "reste"


def _compile(compiler: list[str], out: Path) -> None:
    try:
        done = subprocess.run([*compiler, *FLAGS, "-o", str(out), str(SOURCE)], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(
            f"the fast binary convolution is compiled on first use, but {compiler[0]} cannot be run "
            f"({error.strerror}): install g++, or name a compiler in CXX"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"{compiler[0]} cannot compile {SOURCE.name} ({reason}): name another compiler in CXX")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    scale_and_relu = (ctypes.c_float, number)
    library.reste_binary_conv.argtypes = (*[pointer] * 4, *scale_and_relu, *[pointer] * 6, number)
    library.reste_binary_conv.restype = None
    library.reste_affine.argtypes = (pointer, size, size, number, pointer, pointer, pointer, number)
    library.reste_affine.restype = None
    return library
