"""The checkpoints of a run: which there are, which is the newest good one, which is the best, which can go.

What is changed here is changed by a rename: killed in between, a run has the state before it or the one after.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from trainer.checkpoint import MANIFEST, Progress, problems, step_of, temporary
from trainer.durable import sync_folder
from trainer.errors import ConfigError
from trainer.names import STAGE

log = logging.getLogger(__name__)
BEST = "best"
ASIDE = "set_aside"


def steps(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first, not verified."""
    if not folder.is_dir():
        return []
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) >= 0]
    return [path for _, path in sorted(found) if (path / MANIFEST).is_file()]


def stumps(folder: Path) -> list[Path]:
    """What a writer or remover that was killed has left behind."""
    return sorted(folder.glob(temporary(Path("step_*")).name))


def newest_valid(folder: Path) -> Path | None:
    """The newest undamaged checkpoint; each damaged one passed over is named in a warning.

    Raises:
        OtherFormatError: sooner than a good one comes one of another version of this program.
    """
    for path in reversed(steps(folder)):
        found = problems(path)
        if not found:
            return path
        log.warning("passing over a damaged checkpoint: %s", "; ".join(found))
    return None


def take_up(folder: Path) -> Path | None:
    """The newest undamaged checkpoint for a run that begins; clears away what would be in its way.

    Raises:
        OtherFormatError: as `newest_valid`.
    """
    _clear(folder)
    path = newest_valid(folder)
    if path is None:
        # Else damaged ones would be taken for the newest, and new ones removed in their favour.
        set_aside(folder, None)
    return path


def best(folder: Path) -> Path | None:
    """The checkpoint that `best` names, None if there is none."""
    link = folder / BEST
    return link.resolve() if (link / MANIFEST).is_file() else None


def mark_best(folder: Path, path: Path) -> None:
    """Make `best` name a checkpoint, in one atomic replacement of a link."""
    link = folder / f".{BEST}.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name, target_is_directory=True)
    link.replace(folder / BEST)
    sync_folder(folder)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the best one."""
    kept = best(folder)
    for path in steps(folder)[:-keep]:
        if path.resolve() != kept:
            # It is gone at once: no half-removed checkpoint ever has a checkpoint's name.
            path.rename(temporary(path))
    _clear(folder)


def _clear(folder: Path) -> None:
    for path in stumps(folder):
        shutil.rmtree(path)


def set_aside(folder: Path, progress: Progress | None) -> None:
    """Go back to an earlier state: later checkpoints move to `set_aside/`, `best` is what it was then.

    Args:
        folder: the run's `checkpoints/`.
        progress: of that state; None: to the beginning.
    """
    for path in steps(folder):
        if progress is None or step_of(path) > progress.step:
            aside = folder / ASIDE
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / path.name, ignore_errors=True)
            path.rename(aside / path.name)
            log.warning("%s is later than where the run goes on; it is kept in %s", path.name, aside)
    best_step = None if progress is None else progress.best_step
    path = folder / f"step_{best_step or 0:08d}"
    if path.is_dir():
        mark_best(folder, path)
    else:
        (folder / BEST).unlink(missing_ok=True)


def choose_weights(folder: Path, wanted: str) -> str:
    """Which weights of a checkpoint to use: "model" or "ema"; "auto" is the moving average if there is one.

    Raises:
        ConfigError: the checkpoint does not hold them.
    """
    has_average = (folder / "ema.pt").is_file()
    if wanted not in {"auto", "model", "ema"} or (wanted == "ema" and not has_average):
        raise ConfigError(f"--weights {wanted}: {folder} holds model{' and ema' if has_average else ' only'}")
    return ("ema" if has_average else "model") if wanted == "auto" else wanted


def named(reference: str, run_dir: Path) -> Path:
    """The place that a configuration means: a path, or `stage:NAME` for the run NAME beside `run_dir`."""
    return run_dir.parent / reference.removeprefix(STAGE) if reference.startswith(STAGE) else Path(reference)


def resolve(path: Path, *, at: str = "best") -> Path:
    """A checkpoint folder from a checkpoint, a `checkpoints/` folder or a run folder.

    Args:
        path: any of these.
        at: "best" is the best one of a run, else its newest; "last" the newest.

    Raises:
        ConfigError: nothing there is a checkpoint.
    """
    if (path / MANIFEST).is_file() and (path / "model.pt").is_file():
        return path.resolve()
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if folder.is_symlink():  # to those of a training's newest stage, whose run folder they belong to
        folder = folder.resolve()
    found = (best(folder) if at == "best" else None) or newest_valid(folder)
    if found is None:
        raise ConfigError(f"{path} holds no checkpoint: name a run folder or one of its checkpoints/step_* folders")
    return found
