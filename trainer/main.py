"""One rank's life: load, build, train, and turn whatever happens into an exit code and one clear line."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import failures
from trainer.config import Config
from trainer.errors import EXIT_BUG, EXIT_FINISHED, EXIT_INTERRUPTED, UserError
from trainer.logs import speak_plainly
from trainer.secrets import redact
from trainer.signals import Requests, StoppedEarly
from trainer.staged import train_stages
from trainer.stages import Training, load_training

if TYPE_CHECKING:
    from trainer.watchdog import Watchdog

log = logging.getLogger(__name__)


def run_rank(path: Path, overrides: list[str]) -> int:
    """Train as one rank of the world that the environment describes; returns the exit code of `reste train`.

    User errors end in one line on standard error, written by the rank that found them (rank 0 if all did).
    """
    requests = Requests()
    with requests.received():
        return guarded(lambda: _train_all(load_training(path, overrides), requests))


def guarded(work: Callable[[], int]) -> int:
    """Do a rank's work; turn user errors into one line and their exit code, bugs into a traceback and 1."""
    rank = failures.environment_rank()
    speak_plainly(rank)
    try:
        return work()
    except UserError as error:
        if rank == 0 or not error.everywhere:
            say(str(error), common=error.everywhere)
        return error.exit_code
    except StoppedEarly as request:
        if rank == 0:
            print(request.line, file=sys.stderr)
        return request.exit_code
    except KeyboardInterrupt:
        if rank == 0:
            print("stopped at once: start again to go on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if failures.is_lost_peer(error):
            log.warning("%s %s: %s", failures.name(), failures.LOST, failures.first_line(error))
        else:
            tell_launcher(error)
        return EXIT_BUG


def say(text: str, *, common: bool = False) -> None:
    """One line of error on standard error; it names this rank unless all ranks say the same."""
    who = "" if common or failures.is_alone() else f"[{failures.name()}] "
    print(f"error: {who}{redact(text)}", file=sys.stderr, flush=True)


def tell_launcher(error: Exception) -> None:
    """Hand the traceback of a bug to torchrun or `reste train`, which show the first of all ranks last of all."""
    from trainer.distributed.elastic import record_error

    if not record_error(error):
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
    if not failures.is_alone():
        say(failures.first_line(error))


def _train_all(training: Training, requests: Requests) -> int:
    if not training.stages:
        return _train(training.config, requests)
    return train_stages(training, requests, _train)


def _train(config: Config, requests: Requests) -> int:
    # Heavy imports come after the configuration has been found good.
    with requests.at_once():
        from trainer.watchdog import create_watchdog
    watchdog = create_watchdog(config)
    with watchdog.watching():
        return _build_and_train(config, requests, watchdog)


def _build_and_train(config: Config, requests: Requests, watchdog: Watchdog) -> int:
    with requests.at_once():
        from trainer.assembly import build
        from trainer.distributed.collectives import give_up
        from trainer.loop import train
        from trainer.outcome import print_outcome

        run = build(config, requests, watchdog)
    try:
        result = train(run)
        if run.environment.rank == 0:
            print_outcome(run.directory, result, run.recorder.mlflow_command)
    except BaseException as error:
        give_up()
        if isinstance(error, Exception):
            log.info("failed: %s", error, exc_info=not isinstance(error, UserError))  # for the log file
            failures.note_end(run.directory, error)
        raise
    finally:
        run.close()
    if run.environment.rank == 0 and result.exit_code == EXIT_FINISHED and config.registry.name is not None:
        # After all else, so that no rank waits for it and nothing can be lost by it.
        with requests.at_once():
            from trainer.registration import register_at_end

            print(register_at_end(run.directory, config.registry.name, config.tracking.uri), flush=True)
    return result.exit_code
