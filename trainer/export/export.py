"""`reste export`: a checkpoint into one file, and that file held against the network it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from reste import binary_layers
from trainer.errors import ConfigError
from trainer.evaluation import Block
from trainer.export.agreement import Agreement, compare, noise, validation
from trainer.export.packed import PackedNet, pack, read_packed, write_packed
from trainer.export.program import (
    Deployed,
    evaluated_network,
    load_program,
    open_checkpoint,
    save_program,
    trace_program,
)

SUFFIX = {"packed": ".safetensors", "onnx": ".onnx", "pt2": ".pt2"}
"""Kind of file to the end of its name."""


@dataclass(frozen=True)
class Exported:
    """What has been written, and how it agrees with the trained network.

    Attributes:
        path: the file.
        kind: "packed", "onnx" or "pt2".
        half: whether full-precision weights are 16 bit.
        checkpoint: the checkpoint's folder.
        facts: stored in the file.
        bytes: of the file.
        binary_bytes: of a packed file's binary layers with all that belongs to them; None for other kinds.
        binary_bytes_float32: of the weights of the same layers in the checkpoint, as float32.
        agreement: over `images_of`.
        images_of: root of the validation split, None for noise.
    """

    path: Path
    kind: str
    half: bool
    checkpoint: Path
    facts: Deployed
    bytes: int
    binary_bytes: int | None
    binary_bytes_float32: int
    agreement: Agreement
    images_of: Path | None


def export(
    source: Path, kind: str, *, out: Path | None, half: bool = False, weights: str = "auto", data: Path | None = None
) -> Exported:
    """Write a checkpoint's evaluated network as one file and read it back.

    Args:
        source: a checkpoint, or a run folder (its best checkpoint).
        kind: "packed", "onnx" or "pt2".
        out: file, or a folder that is there for one of the model's name; the current folder by default. A file there
            is replaced.
        half: see `trainer.export.packed.pack`.
        weights: "model", "ema" or "auto" (the moving average if there is one).
        data: root of a data set whose validation split both networks are run on; noise by default.

    Raises:
        ConfigError: an unknown kind, no whole checkpoint, a network that this kind cannot hold, data of other classes,
            or no room for the file.
        DataError: the data is missing or unreadable.
    """
    if kind not in SUFFIX:
        raise ConfigError(f"--to {kind}: choose one of {', '.join(SUFFIX)}")
    if half and kind != "packed":
        raise ConfigError(f"--half is for packed files: leave it out with --to {kind}")
    folder, config, facts = open_checkpoint(source, weights)
    model = evaluated_network(folder, config, facts)
    # The data first: if it is the wrong one, a file that is there already stays.
    with _images(folder, facts, data) as work:
        try:
            path = _target(out, facts.model, SUFFIX[kind])
            forward, binary_bytes = _WRITERS[kind](model, facts, path, half)
        except OSError as error:
            place = Path.cwd() if out is None else out
            raise ConfigError(f"{place} cannot be written ({error.strerror}): name another place with --out") from error
        agreement = compare(model, forward, work, precision=facts.precision, labelled=data is not None)
    return Exported(
        path=path,
        kind=kind,
        half=half,
        checkpoint=folder,
        facts=facts,
        bytes=path.stat().st_size,
        binary_bytes=binary_bytes,
        binary_bytes_float32=sum(4 * layer.weight.numel() for _, layer in binary_layers(model)),
        agreement=agreement,
        images_of=data,
    )


def _target(out: Path | None, model: str, suffix: str) -> Path:
    if out is None or out.is_dir():
        return (out or Path()) / f"{model}{suffix}"
    if out.suffix != suffix:
        raise ConfigError(f"--out {out}: there is no such folder; make it first, or name a file that ends in {suffix}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}: make it first")
    return out


@contextmanager
def _images(folder: Path, facts: Deployed, data: Path | None) -> Iterator[Iterator[Block]]:
    if data is None:
        yield noise(facts)
        return
    with validation(folder, facts, data) as work:
        yield work


Forward = Callable[[Tensor], Tensor]


def _packed(model: nn.Module, facts: Deployed, path: Path, half: bool) -> tuple[Forward, int | None]:
    write_packed(pack(model, facts, half=half), path)
    packed = read_packed(path)
    return PackedNet(packed), packed.bytes_of(binary=True)


def _onnx(model: nn.Module, facts: Deployed, path: Path, half: bool) -> tuple[Forward, int | None]:
    try:
        from trainer.export.onnx_file import run_onnx, write_onnx
    except ImportError as error:
        raise ConfigError(f"--to onnx needs {error.name}: pip install 'reste-trainer[export]'") from None
    return run_onnx(write_onnx(model, facts, path), threads=1), None


def _pt2(model: nn.Module, facts: Deployed, path: Path, half: bool) -> tuple[Forward, int | None]:
    read, _ = load_program(save_program(trace_program(model, facts), facts, path))
    return read.module(), None


_WRITERS = {"packed": _packed, "onnx": _onnx, "pt2": _pt2}
