"""The thread that follows a journal and sends it to MLflow, so that training never waits for a tracker."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from trainer.errors import UserError
from trainer.secrets import redact
from trainer.tracking.address import mlflow_command, resolve_uri
from trainer.tracking.replay import Replay, RunLockedError, Target
from trainer.tracking.store import is_lasting, reason

logger = logging.getLogger(__name__)

EndStatus = Literal["FINISHED", "KILLED", "FAILED"]

_LAST_TRIES_EVERY_S = 0.5
_LOCKED_TRIES = 4
_SWITCH_S = 0.0005
"""The thread that trains gives Python's lock away at every system call and launched kernel, and would wait the usual
5 ms to have it back whenever this one computes, as in importing MLflow."""


class MlflowSender:
    """Replays a run's journal to MLflow from a thread of its own, which makes every MLflow call there is.

    What is journalled is sent with the journal's times and steps; what was sent is not sent again, also after
    a crash or a resume. While MLflow does not answer, training goes on and the journal waits: the sender asks
    again after twice `poll_s`, twice that, and so on up to `longest_wait_s`. There is one warning per outage
    and nothing is raised.
    """

    def __init__(
        self,
        journal_path: Path,
        *,
        run_dir: Path,
        uri: str | None,
        experiment: str,
        run_name: str,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Sequence[Path] = (),
        poll_s: float = 2.0,
        longest_wait_s: float = 60.0,
        down: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare; nothing is contacted before `start`.

        Args:
            journal_path: The journal; it need not exist yet. Cut it before `start`.
            run_dir: Holds tracking.json: which MLflow run this is and what it was sent.
            uri: `tracking.uri`; None is the SQLite store in the parent of `run_dir`.
            experiment: Name of the MLflow experiment, made if missing.
            run_name: Name shown by MLflow.
            params: The flat configuration (`flatten`).
            tags: What may differ between the starts of one run: world size, commit, digests.
            artifacts: Files to store, at the start or as soon as they exist at the end.
            poll_s: Seconds between two looks at the journal.
            longest_wait_s: Longest pause between two attempts during an outage.
            down: Whether every call is to fail now as if MLflow did not answer; asked by the sender's thread.

        Raises:
            ConfigError: `uri` is a kind of store that MLflow refuses.
        """
        self.uri = resolve_uri(uri, run_dir)
        self._replay = Replay(
            Target(
                run_dir=run_dir,
                journal_path=journal_path,
                uri=self.uri,
                experiment=experiment,
                run_name=run_name,
                params=dict(params or {}),
                tags=dict(tags or {}),
                artifacts=tuple(artifacts),
            ),
            down=down,
        )
        self._poll_s = poll_s
        self._longest_wait_s = longest_wait_s
        self._closing = threading.Event()
        self._status: EndStatus = "FINISHED"
        self._deadline = float("inf")
        self._complete = False
        self._looked_for_artifacts = False
        self._failures = 0
        self._warned = False
        self._thread = threading.Thread(target=self._main, name="mlflow-sender", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None as long as MLflow has not answered."""
        return self._replay.run_id or None

    @property
    def command(self) -> str:
        """What to type (or open) to see the run."""
        return mlflow_command(self.uri)

    def start(self) -> None:
        """Begin to send; returns at once."""
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        self._thread.start()

    def close(self, status: EndStatus = "FINISHED", *, timeout_s: float = 30.0) -> bool:
        """Send what is left and end the MLflow run, waiting at most `timeout_s` seconds.

        Returns:
            Whether MLflow has all of it. If not, a warning says how to send the rest later.
        """
        if not self._closing.is_set():
            self._status = status
            self._deadline = time.monotonic() + timeout_s
            self._closing.set()
            if self._thread.ident is not None:
                self._thread.join(timeout_s)
            if not self._complete:
                logger.warning("MLflow does not have all of this run yet; later: reste track sync RUN")
        return self._complete

    def _main(self) -> None:
        while True:
            # Read first: whatever was journalled before `close` is then part of this round.
            closing = self._closing.is_set()
            wait = self._round(closing)
            if wait is None or time.monotonic() >= self._deadline:
                break
            if self._closing.is_set():
                time.sleep(min(wait, _LAST_TRIES_EVERY_S))
            else:
                self._closing.wait(wait)
        self._replay.close()

    def _round(self, closing: bool) -> float | None:
        """Send what is new; returns the seconds to wait before the next round, None to give up."""
        try:
            self._replay.beat()
            self._replay.open()
            self._replay.send()
            uploaded = self._upload() if closing or not self._looked_for_artifacts else True
            if closing:
                self._replay.end(self._status)
                self._complete = uploaded
                return None
            self._replay.end_gone()
        except Exception as error:  # MLflow raises anything; none of it may reach training
            return self._failed(error)
        if self._failures:
            logger.info("MLflow answers again and is up to date")
            self._failures, self._warned = 0, False
        return self._poll_s

    def _upload(self) -> bool:
        """Store the artifacts, apart from the metrics: where they go may be out of reach on its own."""
        self._looked_for_artifacts = True
        try:
            self._replay.upload()
        except Exception as error:  # every kind of artifact store raises its own
            logger.warning("MLflow at %s does not take files (%s); metrics go on", redact(self.uri), reason(error))
            return False
        return True

    def _failed(self, error: Exception) -> float | None:
        if is_lasting(error) or isinstance(error, UserError):
            logger.warning("MLflow at %s refuses this run (%s): journalled only", redact(self.uri), reason(error))
            return None
        self._failures += 1
        # Another start may just be ending what an earlier one of this run left behind.
        patient = isinstance(error, RunLockedError) and self._failures < _LOCKED_TRIES
        if not self._warned and not patient:
            self._warned = True
            logger.warning(
                "MLflow at %s cannot be reached (%s): metrics wait in the journal",
                redact(self.uri),
                reason(error),
            )
        return min(self._longest_wait_s, self._poll_s * 2.0 ** min(self._failures, 30))
