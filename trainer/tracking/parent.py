"""The MLflow run above the runs of a study: what they have in common, and the files that come out of them together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import ConfigError
from trainer.secrets import redact
from trainer.tracking.mlflow_sink import EndStatus
from trainer.tracking.replay import Replay, RunLockedError, Target
from trainer.tracking.store import reason

log = logging.getLogger(__name__)


class ParentRun:
    """A run without metrics of its own; the journals of its children hold these.

    MLflow out of reach is a warning and never an error: the same call later sends what is missing.

    Args:
        directory: the study's folder, made if missing; its `tracking.json` says which MLflow run this is.
        uri: absolute address of the store.
        experiment: MLflow experiment, that of the children.
        params, tags: what describes the study.
        artifacts: files to store once they exist.
    """

    def __init__(
        self,
        directory: Path,
        *,
        uri: str,
        experiment: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        artifacts: Sequence[Path],
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._replay = Replay(
            Target(
                run_dir=directory,
                journal_path=directory / "journal.jsonl",  # there is none
                uri=uri,
                experiment=experiment,
                run_name=directory.name,
                params=params,
                tags=tags,
                artifacts=tuple(artifacts),
            )
        )

    def begin(self) -> str | None:
        """Find or make the run; its id, or None where MLflow cannot be reached.

        Raises:
            ConfigError: another process is at this study.
        """
        try:
            self._replay.open()
        except RunLockedError:
            folder = self._replay.directory
            raise ConfigError(f"{folder} is in use by another process: wait for it, or name another --out") from None
        except Exception as error:  # MLflow raises anything
            self._warn(error, "the runs of this study are not shown below one parent")
            return None
        return self._replay.run_id

    def end(self, status: EndStatus, children: Sequence[Path]) -> None:
        """Store the files that exist and end the run; once more if that failed, by the next start of the study.

        Args:
            status: of the run.
            children: run folders; those that were trained without knowing this run are put below it too.
        """
        try:
            self._replay.open()
            self._replay.upload()
            self._replay.end(status)
            self._replay.adopt(children)
        except Exception as error:
            self._warn(error, "it lacks the results of this study; start the study again to send them")
        finally:
            self._replay.close()

    def _warn(self, error: Exception, consequence: str) -> None:
        log.warning("MLflow at %s cannot be reached (%s): %s", redact(self._replay.uri), reason(error), consequence)
