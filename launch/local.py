"""Deciding whether this process is a rank or starts the ranks of this machine, and telling how they ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trainer.config import Config, load_config
from trainer.distributed.lifeline import end_with_launcher
from trainer.errors import EXIT_BUG, EXIT_STOPPED, ConfigError, DataError, NonFiniteError

_TELLING = (ConfigError.exit_code, DataError.exit_code, NonFiniteError.exit_code, EXIT_STOPPED)


def is_rank() -> bool:
    """Whether a launcher (torchrun, srun, deepspeed) has started this process as one of its ranks."""
    return "RANK" in os.environ or ("SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ)


def gpus_present() -> int:
    """GPUs that torch would see; asks torch only where the driver shows some."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count()


def world_size(nproc: int | None) -> int:
    """Ranks that a start here would have in all.

    Raises:
        ConfigError: more are asked for than there are GPUs.
    """
    if is_rank():
        return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    gpus = gpus_present()
    if nproc is not None and gpus and nproc > gpus:
        raise ConfigError(f"--nproc {nproc} is more than the {gpus} GPUs of this machine: lower it")
    return nproc or gpus or 1


def train(path: Path, overrides: list[str], nproc: int | None) -> int:
    """Train here or in ranks started from here; returns the exit code of `reste train`."""
    config = load_config(path, overrides)
    return _start(lambda: _rank_train(path, overrides), nproc, config)


def _rank_train(path: Path, overrides: list[str]) -> int:
    from trainer.main import run_rank

    return run_rank(path, overrides)


def evaluate(
    checkpoint: Path,
    data: Path | None,
    *,
    batch_size: int | None,
    loader: str | None,
    weights: str,
    as_json: bool,
    nproc: int | None,
) -> int:
    """Evaluate here or in ranks started from here; rank 0 prints."""

    def rank() -> int:
        from trainer.evaluate_checkpoint import run_rank

        return run_rank(checkpoint, data, batch_size=batch_size, loader=loader, weights=weights, as_json=as_json)

    return _start(rank, nproc, None)


def doctor(path: Path, overrides: list[str], nproc: int | None, *, wait_s: float, as_json: bool) -> int:
    """Ask whether all a run needs is there, here and in ranks started from here; rank 0 prints."""
    load_config(path, overrides)

    def rank() -> int:
        from launch.doctor import run_rank

        return run_rank(path, overrides, wait_s=wait_s, as_json=as_json)

    return _start(rank, nproc, None)


def _start(rank: Callable[[], int], nproc: int | None, config: Config | None) -> int:
    end_with_launcher()
    ranks = world_size(nproc)
    if is_rank():
        return rank()
    if ranks == 1:
        return rank()
    from trainer.distributed.elastic import start_ranks

    started = time.time()
    codes = start_ranks([sys.executable, "-m", "launch", *sys.argv[1:]], ranks)
    return _outcome(codes, config, started)


def _outcome(codes: list[int], config: Config | None, started: float) -> int:
    """One exit code for all ranks; a rank's own reason weighs more than its peers' being taken down with it."""
    if config is not None:
        from trainer.tracking.status import read_status

        status = read_status(config.run_dir)
        if status is not None and status.time >= started and status.exit_code is not None:
            return status.exit_code
    for code in codes:
        if code in _TELLING:
            return code
    killed = sorted({-code for code in codes if code < 0})
    if killed:
        print(
            f"error: a rank was killed by signal {killed[0]}; start again to go on from the last checkpoint",
            file=sys.stderr,
        )
    return EXIT_BUG if codes else 0
