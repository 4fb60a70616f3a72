"""One rank's life: load, build, train, and turn whatever happens into an exit code and one clear line."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from trainer.config import Config, load_config
from trainer.errors import EXIT_BUG, UserError
from trainer.tracking.status import read_status, write_status

log = logging.getLogger(__name__)


def run_rank(path: Path, overrides: list[str]) -> int:
    """Train as one rank of the world that the environment describes; returns the exit code of `reste train`.

    User errors end in one line on standard error, written by the rank that found them (rank 0 if all did).
    """
    return guarded(lambda: _train(load_config(path, overrides)))


def guarded(work: Callable[[], int]) -> int:
    """Do a rank's work; turn user errors into one line and their exit code, bugs into a traceback and 1."""
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    speak_plainly(rank)
    try:
        return work()
    except UserError as error:
        if rank == 0 or not error.everywhere:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        if is_lost_peer(error):
            log.warning("rank %d lost its peers: %s", rank, first_line(error))
        else:
            traceback.print_exc()
        return EXIT_BUG


def _train(config: Config) -> int:
    # Heavy imports come after the configuration has been found good.
    from trainer.assembly import build
    from trainer.loop import train
    from trainer.outcome import print_outcome

    run = build(config)
    try:
        log_to_file(run.directory, run.environment.rank)
        result = train(run)
        if run.environment.rank == 0:
            print_outcome(run.directory, result, run.recorder.mlflow_command)
        return result.exit_code
    except Exception as error:
        log.info("failed: %s", error, exc_info=not isinstance(error, UserError))  # for the log file
        if not is_lost_peer(error) and (run.environment.rank == 0 or not getattr(error, "everywhere", False)):
            note_failure(run.directory, getattr(error, "exit_code", EXIT_BUG), first_line(error))
        raise
    finally:
        run.close()


def first_line(error: Exception) -> str:
    """The kind of an error that is no user error, and the first line of what it says."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def speak_plainly(rank: int) -> None:
    """Warnings and log records as one line each on standard error, from rank 0 alone unless serious."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING if rank == 0 else logging.ERROR)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_args, **_kwargs: str(message)
    for chatty in (
        "alembic",
        "mlflow",
        "sqlalchemy",
        "torch._inductor",
        "torch.distributed",
        "torch.utils.cpp_extension",
    ):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def log_to_file(directory: Path, rank: int) -> None:
    """Add this rank's own log file, `logs/rank_N.log`."""
    folder = directory / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"rank_{rank}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def note_failure(directory: Path, exit_code: int, message: str) -> None:
    """Record in status.json how the run failed; the first rank's report stands."""
    status = read_status(directory)
    if status is None or status.state != "running":
        return
    write_status(
        directory,
        "failed",
        step=status.step,
        total_steps=status.total_steps,
        epoch=status.epoch,
        metrics=status.metrics,
        checkpoint=status.checkpoint,
        exit_code=exit_code,
        error=message,
    )


def is_lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another rank has gone; that rank's own error is the one to read."""
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "remote process exited",
        "timed out",
    )
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
