"""A checkpoint is a folder, complete once its manifest is there and every digest in it holds.

step_00001234/
    model.pt  engine.pt  [ema.pt]     tensors, loaded with weights_only=True
    config.yaml                       the resolved configuration
    manifest.json                     written last: step, progress, SHA-256 and size of every other file, and a seal

The seal is the digest of the manifest itself, and a manifest has exactly the bytes that writing its content again
gives. So no byte of a checkpoint can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.durable import file_digest, sync_folder, write_file
from trainer.errors import ConfigError

MANIFEST = "manifest.json"
FORMAT = 2
_SEAL = "seal"
_NAME = re.compile(r"step_(\d{8,})")


class OtherFormatError(ConfigError):
    """A whole checkpoint, but of another version of this program."""


@dataclass(frozen=True)
class Progress:
    """How far a run had come; JSON in the manifest.

    Attributes:
        step: completed optimizer steps.
        samples_seen: training samples of all ranks up to there.
        seconds: training time so far, over all attempts.
        last, best: newest and best validation metrics.
        best_step: step of the best ones, or None.
        journal_offset: bytes of the journal that belong to these steps.
        meters: the open window of training sums.
        evaluation_due: whether the evaluation that belongs to this step was cut short by a stop.
        skipped: steps left out because they were not finite.
        returned: how often the run has gone back to the checkpoint of a step.
        steered_power: where `estimator.hold_instability` has brought the power, or None.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    samples_seen: int
    seconds: float
    last: dict[str, float]
    best: dict[str, float]
    best_step: int | None
    journal_offset: int
    meters: list[float]
    evaluation_due: bool = False
    skipped: int = 0
    returned: dict[str, int] = field(default_factory=dict)
    steered_power: float | None = None


class _File(BaseModel):
    sha256: str
    bytes: int


class _Form(BaseModel):
    """What every manifest holds, beside further facts."""

    progress: Progress
    files: dict[str, _File]


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's folder, -1 if it is not named like one of a run's."""
    match = _NAME.fullmatch(path.name)
    return -1 if match is None else int(match[1])


def temporary(path: Path) -> Path:
    """The name that a checkpoint has while it is written or removed, under which it does not count."""
    return path.with_name(f".{path.name}.tmp")


def save(
    folder: Path,
    payloads: dict[str, Any],
    *,
    progress: Progress,
    config_yaml: str,
    about: dict[str, Any],
    writing: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint that is either complete or not there.

    A whole one of this step that is there already stays as it is; if it lacked the evaluation of its step, it learns
    of it.

    Args:
        folder: the run's `checkpoints/`.
        payloads: file stem to an object of tensors and plain values.
        progress: goes into the manifest and names the folder.
        config_yaml: the resolved configuration.
        about: further facts for the manifest (digests, model, world size).
        writing: called when the checkpoint is half written.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the disk is full (ENOSPC, EDQUOT) or not writable; the unfinished folder has been removed.
    """
    target = folder / f"step_{progress.step:08d}"
    unfinished = temporary(target)
    try:
        if is_valid(target):
            _renew(target, progress)
            return target
        _write(unfinished, payloads, config_yaml, {**about, "progress": asdict(progress)}, writing)
        # One with this name is damaged: whole ones have been dealt with.
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(error.errno, f"cannot save {target}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def _write(
    folder: Path, payloads: dict[str, Any], config_yaml: str, facts: dict[str, Any], writing: Callable[[], None]
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {f"{stem}.pt": write_file(folder / f"{stem}.pt", partial(torch.save, p)) for stem, p in payloads.items()}
    writing()
    files["config.yaml"] = write_file(folder / "config.yaml", lambda file: file.write(config_yaml.encode()))
    manifest = {"format": FORMAT, "time": time.time(), **facts, "files": files}
    write_file(folder / MANIFEST, lambda file: file.write(_sealed(manifest)))
    sync_folder(folder)


def _renew(path: Path, progress: Progress) -> None:
    """Replace the progress of a whole checkpoint that was saved before its step's evaluation, in one atomic step.

    Its tensors are those of the same step: what is computed does not depend on when it was saved.
    """
    manifest = read_manifest(path)
    if manifest["progress"]["evaluation_due"] != progress.evaluation_due:
        unfinished = temporary(path / MANIFEST)
        write_file(unfinished, lambda file: file.write(_sealed(manifest | {"progress": asdict(progress)})))
        unfinished.replace(path / MANIFEST)
        sync_folder(path)


def _sealed(content: dict[str, Any]) -> bytes:
    """The bytes of a manifest: the one way to write this content, with its digest as the last entry."""
    seal = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({**content, _SEAL: seal}, indent=1) + "\n").encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, its seal checked and taken off.

    Raises:
        OtherFormatError: it is that of another version of this program.
        ConfigError: there is none, or it is damaged.
    """
    try:
        written = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} is no checkpoint ({error}): name a folder that holds {MANIFEST}") from None
    try:
        content = json.loads(written)
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        # The first format had no seal.
        whole = content.pop(_SEAL, None) is None or _sealed(content) == written
        if whole and content.get("format") != FORMAT:
            raise OtherFormatError(f"{path} is a checkpoint of another format: this program reads format {FORMAT}")
        if _sealed(content) != written:
            raise ValueError("its digest differs from the one at its end")
        _Form.model_validate_json(written, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{path / MANIFEST} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path / MANIFEST} is damaged: {error}") from None
    return content


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint, each damaged file by its name; empty if every size and digest holds.

    Raises:
        OtherFormatError: it is that of another version of this program, and nothing can be said about it.
    """
    try:
        manifest = read_manifest(path)
    except OtherFormatError:
        raise
    except ConfigError as error:
        return [str(error)]
    found = [f"{path} holds step {manifest['progress']['step']}"] if _is_misnamed(path, manifest) else []
    return found + [fault for name, expected in manifest["files"].items() if (fault := _fault(path, name, expected))]


def _is_misnamed(path: Path, manifest: dict[str, Any]) -> bool:
    return step_of(path) not in {-1, manifest["progress"]["step"]}


def _fault(path: Path, name: str, expected: dict[str, Any]) -> str:
    file = path / name
    try:
        if Path(name).name != name or not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != expected["bytes"] or file_digest(file) != expected["sha256"]:
            return f"{file} is damaged: its digest differs from the manifest's"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror or error}"
    return ""


def is_valid(path: Path) -> bool:
    """Whether a checkpoint is complete, undamaged and of this version's format."""
    try:
        return (path / MANIFEST).is_file() and not problems(path)
    except OtherFormatError:
        return False


def load_payload(path: Path, stem: str) -> Any:
    """One payload of a checkpoint, on the CPU; nothing in it is ever executed.

    Raises:
        ConfigError: the file is missing or holds more than tensors and plain values.
    """
    file = path / f"{stem}.pt"
    if not file.is_file():
        raise ConfigError(f"{path} holds no {stem}.pt: was it saved by a run with other options?")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(f"{file} cannot be loaded as tensors alone ({first_line})") from error
