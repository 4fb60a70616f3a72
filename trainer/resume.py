"""Taking possession of a run folder and going on from its newest good checkpoint."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from timm.utils import ModelEmaV3
from torch import nn

from reste import SignMemory
from trainer import checkpoint, checkpoints
from trainer.config import Config, fixed_values, load_config
from trainer.distributed import collectives
from trainer.distributed.engine import Engine
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError
from trainer.meters import Meters
from trainer.network import load_weights
from trainer.ranks import refuse_other_statistics
from trainer.run import State
from trainer.tracking.files import FileLock

log = logging.getLogger(__name__)
LOCK = ".lock"


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from, and how many ranks saved it."""

    path: Path
    progress: checkpoint.Progress
    world_size: int


def claim(
    config: Config,
    environment: Environment,
    undo: ExitStack,
    *,
    data_digest: str,
    batchnorm_groups: int,
    teacher_digest: str | None = None,
) -> tuple[Path, Found | None]:
    """Lock the run's folder for as long as this process lives, and find what to resume; rank 0 decides for all.

    Args:
        config: names the folder and the policy (`resume`).
        environment: this start's ranks; those of the checkpoint may have been others.
        undo: receives the release of the lock.
        data_digest: of the data that the run would go on with.
        batchnorm_groups: in how many parts these ranks would take batch statistics.
        teacher_digest: of the weights that it would go on learning from; None without a teacher.

    Raises:
        ConfigError: on every rank: another process owns the folder, or its configuration, data, teacher or batch
            statistics differ.
    """
    found: Found | None = None
    with collectives.agreed_errors():
        if collectives.is_main():
            path = _claim(config, undo)
            found = None if path is None else _accept(config, path, environment, data_digest, batchnorm_groups)
            if found is not None:
                _refuse_other_teacher(config, found.path, teacher_digest)
    return config.run_dir, collectives.broadcast_object(found)


def _claim(config: Config, undo: ExitStack) -> Path | None:
    directory = config.run_dir
    made_here = not directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    if made_here:
        # Should assembly fail after this, nothing is left of a run that never began.
        undo.callback(_remove_if_unused, directory)
    undo.callback(_lock(directory))
    for stump in directory.glob(".*.tmp"):  # of a process that was killed while it wrote a small file
        stump.unlink(missing_ok=True)
    path = None if config.resume == "never" else _choose(config, directory / "checkpoints")
    if config.resume == "never":
        _keep_old_run(directory)
    return path


def _accept(config: Config, path: Path, environment: Environment, data_digest: str, batchnorm_groups: int) -> Found:
    refuse_changes(config, path)
    manifest = checkpoint.read_manifest(path)
    if manifest["data_digest"] != data_digest:
        raise ConfigError(
            f"{path} was trained on other data than {config.data.root} holds now: restore the data, or choose another "
            "run.name (model.init=CHECKPOINT starts from its weights)"
        )
    # Checkpoints of before this was recorded are taken as they are.
    saved_groups = manifest.get("batchnorm_groups", batchnorm_groups)
    refuse_other_statistics(config, saved_groups, batchnorm_groups, environment)
    progress = checkpoint.Progress(**manifest["progress"])
    if not _is_own(config, path):  # its journal and its best checkpoint are not here
        progress = replace(progress, journal_offset=0, best={}, best_step=None)
    checkpoints.set_aside(config.run_dir / "checkpoints", progress)
    return Found(path, progress, manifest["world_size"])


def _refuse_other_teacher(config: Config, path: Path, digest: str | None) -> None:
    if checkpoint.read_manifest(path).get("teacher_digest") != digest:
        raise ConfigError(
            f"{path} learned from other weights than {config.distill.teacher} holds now: restore the teacher, or "
            "choose another run.name (model.init=CHECKPOINT starts from its weights)"
        )


def _lock(directory: Path) -> Callable[[], None]:
    lock = FileLock(directory / LOCK)
    if not lock.acquire():
        raise ConfigError(
            f"run folder {directory} is in use by another process: wait for it, or choose another run.name"
        )
    return lock.release


def _remove_if_unused(directory: Path) -> None:
    if {path.name for path in directory.iterdir()} <= {LOCK, "logs"}:
        shutil.rmtree(directory / "logs", ignore_errors=True)
        (directory / LOCK).unlink(missing_ok=True)
        directory.rmdir()


def _keep_old_run(directory: Path) -> None:
    old = [path for path in directory.iterdir() if path.name != LOCK]
    if not old:
        return
    kept = next(p for n in itertools.count(1) if not (p := directory.with_name(f"{directory.name}.old-{n}")).exists())
    kept.mkdir()
    for path in old:
        path.rename(kept / path.name)
    log.warning("resume=never: the earlier run is kept in %s", kept)


def _is_own(config: Config, path: Path) -> bool:
    return path.resolve().parent == (config.run_dir / "checkpoints").resolve()


def _choose(config: Config, folder: Path) -> Path | None:
    if config.resume == "auto":
        return checkpoints.take_up(folder)
    path = checkpoints.resolve(Path(config.resume))
    if not _is_own(config, path) and (own := checkpoints.take_up(folder)) is not None:
        return own  # begun there by an earlier start, and further by now
    found = checkpoint.problems(path)
    if found:
        raise ConfigError(f"resume={config.resume}: {'; '.join(found)}; resume=auto takes the newest good one")
    return path


def differences(saved: Config, now: Config) -> list[str]:
    """Every value that decides what is computed and that two configurations do not share: `key: saved -> now`."""
    old, new = fixed_values(saved), fixed_values(now)
    keys = sorted(old.keys() | new.keys())
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def refuse_changes(config: Config, path: Path) -> None:
    """Refuse to continue another run's checkpoint under a configuration that computes something else.

    Raises:
        ConfigError: naming every value that differs.
    """
    changed = differences(load_config(path / "config.yaml"), config)
    if changed:
        raise ConfigError(
            f"{path} was saved under another configuration ({'; '.join(changed)}): choose another run.name, "
            "resume=never, or model.init=CHECKPOINT to start from its weights"
        )


def restore(
    found: Found, model: nn.Module, ema: ModelEmaV3 | None, engine: Engine, meters: Meters, signs: SignMemory
) -> State:
    """Put a checkpoint's tensors in place, on every rank; returns the state to go on from.

    Raises:
        ConfigError: a payload is missing or does not fit.
    """
    load_tensors(found.path, model, ema, engine, signs)
    meters.load(found.progress.meters)
    kept = asdict(found.progress)
    return State(**{field.name: kept[field.name] for field in fields(State)})


def load_tensors(path: Path, model: nn.Module, ema: ModelEmaV3 | None, engine: Engine, signs: SignMemory) -> None:
    """Put weights, batch statistics, moving average, optimizer state and probed signs in place, on every rank.

    A checkpoint from before the first probe has no signs, and those in memory are forgotten.

    Raises:
        ConfigError: a payload is missing or does not fit.
    """
    load_weights(model, checkpoint.load_payload(path, "model"), path)
    if ema is not None:
        load_weights(ema.module, checkpoint.load_payload(path, "ema"), path)
    engine.load_state(checkpoint.load_payload(path, "engine"))
    probed = checkpoint.load_payload(path, "signs") if (path / "signs.pt").is_file() else {}
    signs.load_state(probed, model)
