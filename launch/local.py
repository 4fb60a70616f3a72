"""Deciding whether this process is a rank or starts the ranks of this machine, and telling how they ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import Config, load_config
from trainer.distributed.environment import announced_world, is_rank
from trainer.distributed.lifeline import end_with_launcher
from trainer.errors import EXIT_BUG, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_STOPPED, ConfigError
from trainer.failures import environment_rank, is_hearsay, note_failure
from trainer.secrets import redact
from trainer.signals import Requests, StoppedEarly
from trainer.stages import load_training
from trainer.tracking.status import read_status

if TYPE_CHECKING:
    from trainer.distributed.elastic import Ended


def gpus_present() -> int:
    """GPUs that torch would see; asks torch only where the driver shows some."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count()


def world_size(nproc: int | None) -> int:
    """Ranks that a start here would have in all; a launcher's word counts for more than `--nproc`.

    Raises:
        ConfigError: more are asked for than there are GPUs, or a launcher's variables cannot be read.
    """
    if is_rank(os.environ):
        return announced_world(os.environ)
    gpus = gpus_present()
    if nproc is not None and gpus and nproc > gpus:
        raise ConfigError(f"--nproc {nproc} is more than the {gpus} GPUs of this machine: lower it")
    return nproc or gpus or 1


def train(path: Path, overrides: list[str], nproc: int | None) -> int:
    """Train here or in ranks started from here; returns the exit code of `reste train`."""
    config = load_training(path, overrides).config
    return _start(lambda: _rank_train(path, overrides), nproc, config)


def _rank_train(path: Path, overrides: list[str]) -> int:
    from trainer.main import run_rank

    return run_rank(path, overrides)


def evaluate(
    checkpoint: str,
    data: Path | None,
    *,
    batch_size: int | None,
    loader: str | None,
    weights: str,
    uri: str | None,
    as_json: bool,
    nproc: int | None,
) -> int:
    """Evaluate here or in ranks started from here; rank 0 prints."""

    def rank() -> int:
        from trainer.evaluate_checkpoint import run_rank

        return run_rank(
            checkpoint, data, batch_size=batch_size, loader=loader, weights=weights, uri=uri, as_json=as_json
        )

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
    if is_rank(os.environ):
        if nproc not in (None, ranks) and environment_rank() == 0:
            asked = f"--nproc {nproc} has no effect: a launcher has started {ranks} rank{'s' if ranks > 1 else ''}"
            print(f"{asked}, of which this is one", file=sys.stderr)
        return rank()
    if ranks == 1:
        return rank()
    requests = Requests()
    with requests.received(), requests.at_once():
        try:
            return _start_ranks(ranks, config)
        except StoppedEarly as request:
            print(request.line, file=sys.stderr)
            return request.exit_code


def _start_ranks(ranks: int, config: Config | None) -> int:
    started = time.time()
    from trainer.distributed.elastic import start_ranks

    return tell(start_ranks([sys.executable, "-m", "launch", *sys.argv[1:]], ranks), config, started)


def tell(ended: Ended, config: Config | None, started: float) -> int:
    """One exit code for all ranks; says what they could not tell themselves, the first one's traceback last of all.

    Args:
        ended: how the ranks ended.
        config: of the run, if they trained.
        started: when they did, in unix seconds; an older status.json is another start's.
    """
    if ended.traceback is not None:
        print(f"error: rank {ended.first} failed first:\n{redact(ended.traceback.rstrip())}", file=sys.stderr)
        if config is not None:
            note_failure(config.run_dir, EXIT_BUG, ended.traceback.rstrip().splitlines()[-1])
    if ended.at_once:
        print("stopped at once: start again to go on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    if ended.first is None:
        status = None if config is None else read_status(config.run_dir)
        if config is None or status is None or status.state != "running":
            return EXIT_FINISHED
        text = "every rank ended with code 0, and none of them said that the run is finished: start again to go on"
        note_failure(config.run_dir, EXIT_BUG, text)
        print(f"error: {text}", file=sys.stderr)
        return EXIT_BUG
    code = ended.codes[ended.first]
    if code < 0 and ended.requested is not None and code == -signal.Signals[ended.requested]:
        # A rank that was still loading libraries died of the signal that the others answered.
        print(StoppedEarly(ended.requested).line, file=sys.stderr)
        return EXIT_STOPPED
    status = None if config is None else read_status(config.run_dir)
    if status is not None and status.exit_code is not None and status.time >= started and not is_hearsay(status):
        # A rank may be killed while it still closes what it had open, because the others have lost it.
        return status.exit_code
    if code < 0:
        by = signal.Signals(-code).name + (" (by the system, if memory ran out)" if code == -signal.SIGKILL else "")
        killed = f"rank {ended.first} was killed by {by}"
        if config is not None:
            note_failure(config.run_dir, EXIT_BUG, killed)
        print(f"error: {killed}; start again to go on from the last checkpoint", file=sys.stderr)
        return EXIT_BUG
    return code
