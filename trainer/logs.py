"""Where messages go: standard error for people, and a file of its own for every rank."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from trainer import failures
from trainer.secrets import redact

log = logging.getLogger(__name__)


class _Discreet(logging.Formatter):
    """Writes records, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def speak_plainly(rank: int) -> None:
    """Warnings and log records as one line each on standard error, from rank 0 alone unless serious."""
    handler = logging.StreamHandler(sys.stderr)
    who = "" if rank == 0 else f"[{failures.name()}] "
    handler.setFormatter(_Discreet(f"%(levelname)s: {who}%(message)s"))
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
    """Add this rank's own log file, `logs/rank_N.log`; earlier lives are kept."""
    folder = directory / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"rank_{rank}.log", encoding="utf-8")
    handler.setFormatter(_Discreet("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    log.info("%s, process %d: a start", failures.name(), os.getpid())
