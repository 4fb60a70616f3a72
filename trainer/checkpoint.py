"""Checkpoints are folders, complete once their manifest is there and every digest in it holds.

step_00001234/
    model.pt  engine.pt  [ema.pt]     tensors, loaded with weights_only=True
    config.yaml                       the resolved configuration
    manifest.json                     written last: step, progress, SHA-256 and size of every other file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
FORMAT = 1
_STEP = re.compile(r"step_(\d{8,})")


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
    """

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
        OSError: the disk is full or not writable; the unfinished folder has been removed.
    """
    target = folder / f"step_{progress.step:08d}"
    # One that an evaluation has been added to since replaces the one without.
    if is_valid(target) and read_manifest(target)["progress"].get("evaluation_due", False) == progress.evaluation_due:
        return target
    temporary = folder / f".{target.name}.tmp"
    try:
        _write(temporary, payloads, progress, config_yaml, about, writing)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # torch reports a full disk as a RuntimeError of its zip writer.
        raise OSError(f"cannot save {target}: {error}") from error
    return target


def _write(
    temporary: Path,
    payloads: dict[str, Any],
    progress: Progress,
    config_yaml: str,
    about: dict[str, Any],
    writing: Callable[[], None],
) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for stem, payload in payloads.items():
        torch.save(payload, temporary / f"{stem}.pt")
    writing()
    (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
    files = {}
    for path in sorted(temporary.iterdir()):
        sync_file(path)
        files[path.name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    manifest = {"format": FORMAT, **about, "progress": asdict(progress), "files": files}
    path = temporary / MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync_file(path)
    sync_folder(temporary)


def sync_file(path: Path) -> None:
    """Push a file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Push a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ConfigError: there is none, or it is not one of this program's.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no checkpoint ({error}): name a folder that holds {MANIFEST}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ConfigError(f"{path} is a checkpoint of another format: this program reads format {FORMAT}")
    return manifest


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint's files; empty if every size and digest holds."""
    try:
        manifest = read_manifest(path)
    except ConfigError as error:
        return [str(error)]
    found = []
    for name, expected in manifest["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            found.append(f"{file} is missing")
        elif file.stat().st_size != expected["bytes"] or file_digest(file) != expected["sha256"]:
            found.append(f"{file} is damaged: its digest differs from the manifest's")
    return found


def is_valid(path: Path) -> bool:
    """Whether a checkpoint is complete and undamaged."""
    return (path / MANIFEST).is_file() and not problems(path)


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


def steps(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first, not verified."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _STEP.fullmatch(p.name) and (p / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def newest_valid(folder: Path) -> Path | None:
    """The newest undamaged checkpoint; each damaged one passed over is named in a warning."""
    for path in reversed(steps(folder)):
        found = problems(path)
        if not found:
            return path
        log.warning("passing over a damaged checkpoint: %s", "; ".join(found))
    return None


def mark_best(folder: Path, path: Path) -> None:
    """Make `best` name a checkpoint, in one atomic replacement of a link."""
    link = folder / ".best.tmp"
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(path.name, target_is_directory=True)
    link.replace(folder / "best")
    sync_folder(folder)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the best one."""
    best = (folder / "best").resolve()
    for path in steps(folder)[:-keep]:
        if path.resolve() != best:
            # Without its manifest a half-removed folder counts as no checkpoint.
            (path / MANIFEST).unlink()
            shutil.rmtree(path)


def set_aside(folder: Path, progress: Progress) -> None:
    """Go back to an earlier state: later checkpoints move to `set_aside/`, `best` is what it was then."""
    for path in steps(folder):
        if step_of(path) > progress.step:
            aside = folder / "set_aside"
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / path.name, ignore_errors=True)
            path.rename(aside / path.name)
            log.warning("%s is later than where the run goes on; it is kept in %s", path.name, aside)
    best = folder / f"step_{progress.best_step or 0:08d}"
    if best.is_dir():
        mark_best(folder, best)
    else:
        (folder / "best").unlink(missing_ok=True)


def resolve(path: Path) -> Path:
    """A checkpoint folder from a checkpoint, a `checkpoints/` folder or a run folder (best first, else newest).

    Raises:
        ConfigError: nothing there is a checkpoint.
    """
    if (path / MANIFEST).is_file() and (path / "model.pt").is_file():
        return path.resolve()
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    best = folder / "best"
    if (best / MANIFEST).is_file():
        return best.resolve()
    newest = newest_valid(folder)
    if newest is None:
        raise ConfigError(f"{path} holds no checkpoint: name a run folder or one of its checkpoints/step_* folders")
    return newest
