"""Rank 0's account of a run: journal, MLflow, progress, status. On the other ranks the same object says nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config_schema import TrackingConfig
from trainer.config_source import read_source
from trainer.data.batch import Batch
from trainer.errors import DataError
from trainer.report import keep_report
from trainer.tracking.files import write_json
from trainer.tracking.journal import Journal
from trainer.tracking.manifest import build_manifest, write_manifest
from trainer.tracking.mlflow_sink import EndStatus, MlflowSender
from trainer.tracking.progress import Progress
from trainer.tracking.replay import parent_tags
from trainer.tracking.staging import run_label
from trainer.tracking.status import State, read_status, write_status
from trainer.tracking.store import preload
from trainer.tracking.sync import ARTIFACTS, flatten, manifest_tags

log = logging.getLogger(__name__)


class Recorder:
    """Writes what the loop reports.

    Args:
        directory: the run's folder.
        enabled: False on every rank but 0.
        total_steps: where the run ends.
        steps_per_epoch: steps in one epoch.
        eval_every: steps between evaluations, 0 for one at the end.
        print_s: seconds between progress lines, and between updates of status.json.
    """

    def __init__(
        self,
        directory: Path,
        *,
        enabled: bool,
        total_steps: int,
        steps_per_epoch: int,
        eval_every: int = 0,
        print_s: float,
    ) -> None:
        self.directory = directory
        self.enabled = enabled
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._print_s = print_s
        self._journal = Journal(directory / "journal.jsonl" if enabled else None)
        self._progress = Progress(
            total_steps,
            epochs=-(-total_steps // steps_per_epoch),
            eval_every=eval_every,
            enabled=enabled,
            interval_s=print_s,
        )
        self._sender: MlflowSender | None = None
        self._metrics: dict[str, float] = {}
        self._checkpoint: str | None = None
        self._trouble: str | None = None
        self._reports = False
        self._step = 0
        self._status_at = 0.0
        self._closed = False

    def begin(
        self,
        config_yaml: str,
        about: Mapping[str, Any],
        *,
        seed: int,
        step: int,
        journal_offset: int,
        resumed_from: Path | None,
    ) -> None:
        """Cut the journal where the resumed state ends, write configuration and manifest, say that the run begins."""
        self._step = step
        if not self.enabled:
            return
        lost = self._journal.cut(journal_offset)
        if lost is not None:
            self._progress.note(f"metrics after step {step} are made again; the old ones are kept in {lost.name}")
        (self.directory / "result.json").unlink(missing_ok=True)
        (self.directory / "config.yaml").write_text(config_yaml, encoding="utf-8")
        manifest = build_manifest(
            seed=seed,
            config_digest=about["config_digest"],
            data_digest=about["data_digest"],
            world_size=about["world_size"],
        )
        write_manifest(self.directory, manifest, ended=self._last_end())
        if resumed_from is not None:
            own = resumed_from.resolve().parent == (self.directory / "checkpoints").resolve()
            self._checkpoint = f"checkpoints/{resumed_from.name}" if own else str(resumed_from)
        if resumed_from is None:
            self._journal.event("started", step=step)
        else:
            self._journal.event("resumed", step=step, fields={"from": self._checkpoint})
        self._write_status("running")

    def _last_end(self) -> dict[str, Any] | None:
        """How the start before this one ended; one that never said so was killed."""
        try:
            status = read_status(self.directory)
        except DataError:
            return None
        if status is None:
            return None
        state = "killed" if status.state == "running" else status.state
        return {"state": state, "step": status.step, "exit_code": status.exit_code}

    def keep(self, name: str, value: Any) -> None:
        """Write a JSON file beside the configuration; None takes away that of an earlier start."""
        if not self.enabled:
            return
        if value is None:
            (self.directory / name).unlink(missing_ok=True)
        else:
            write_json(self.directory / name, value)

    def track(self, tracking: TrackingConfig, *, down: Callable[[int], bool] = lambda step: False) -> None:
        """Let MLflow follow the journal without waiting for it; at steps for which `down` is true it is away."""
        if not self.enabled:
            return
        self._reports = tracking.report
        config = read_source(self.directory / "config.yaml", []).values
        manifest = json.loads((self.directory / "manifest.json").read_text(encoding="utf-8"))
        self._sender = MlflowSender(
            self.directory / "journal.jsonl",
            run_dir=self.directory,
            uri=tracking.uri,
            experiment=tracking.experiment,
            run_name=run_label(self.directory),
            params=flatten(config),
            tags=manifest_tags(manifest) | parent_tags(tracking.parent),
            artifacts=[self.directory / name for name in ARTIFACTS],
            down=lambda: down(self._step),
        )
        preload(self._sender.uri, tracking.experiment)
        self._sender.start()

    @property
    def mlflow_command(self) -> str | None:
        """What to type to see the run in MLflow."""
        return None if self._sender is None else self._sender.command

    def note(self, text: str) -> None:
        """Say something to the user, on rank 0."""
        self._progress.note(text)

    def tick(self, step: int) -> None:
        """A step is done."""
        self._step = step
        self._progress.update(step, epoch=self._epoch())

    def evaluating(self, batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
        """The batches of an evaluation of so many samples over all ranks; shows how far it is, and how long it took."""
        began, seen = time.monotonic(), 0
        for batch in batches:
            yield batch
            seen += batch.plan.global_count
            self._progress.evaluating(seen / samples)
        self._progress.evaluated(time.monotonic() - began)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Journal metrics under their names; show the training ones, and refresh status.json now and then."""
        if not self.enabled:
            return
        self._journal.write(values, step=step)
        self._metrics |= {name: value for name, value in values.items() if not name.startswith("indicator/")}
        self._progress.update(
            step,
            epoch=self._epoch(),
            loss=values.get("train/loss"),
            top1=values.get("train/top1"),
            images_per_s=values.get("perf/images_per_s"),
            data_wait=values.get("perf/data_wait"),
        )
        if "val/top1" in values:
            self._progress.note(
                f"epoch {self._epoch()}  step {step}  val top-1 {values['val/top1']:.2f} %  "
                f"top-5 {values['val/top5']:.2f} %  loss {values['val/loss']:.4f}"
            )
        if time.monotonic() - self._status_at > self._print_s:
            self._still_running()

    def event(self, name: str, step: int, **fields: Any) -> None:
        """Something happened that belongs in the journal."""
        self._journal.event(name, step=step, fields=fields)

    def offset(self) -> int:
        """Bytes of the journal so far; a checkpoint records them."""
        return self._journal.offset()

    def wait(self, offset: int) -> None:
        """Wait until so much of the journal is on the disk; for the thread that saves. Raises `OSError`."""
        self._journal.wait(offset)

    def saved(self, path: Path | None, trouble: str | None = None) -> None:
        """Which checkpoint is complete, None if it is no other, and what keeps a newer one from being so."""
        self._checkpoint = self._checkpoint if path is None else f"checkpoints/{path.name}"
        self._trouble = trouble
        self._still_running()

    def close(self, state: State, *, exit_code: int, reason: str | None = None, result: Any = None) -> None:
        """The run has ended: write its result and status, let MLflow catch up for a bounded time."""
        if self._closed:
            return
        self._closed = True
        self._progress.finish()
        if not self.enabled:
            return
        if result is not None:
            self._write_result(result)
        self._write_status(state, exit_code=exit_code, error=reason)
        self._journal.close()
        if self._reports and result is not None:
            keep_report(self.directory)
        if self._sender is not None:
            ends: dict[str, EndStatus] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
            self._sender.close(ends[state])

    def abandon(self) -> None:
        """The run ends by an error that is reported elsewhere; does nothing after `close`."""
        if self._closed:
            return
        self._closed = True
        self._progress.finish()
        self._journal.close()
        if self._sender is not None:
            self._sender.close("FAILED", timeout_s=10.0)

    def _write_result(self, result: Any) -> None:
        try:
            write_json(self.directory / "result.json", result)
        except OSError as error:  # the run is finished all the same, and its checkpoints hold these numbers
            log.warning("%s cannot be written (%s)", self.directory / "result.json", error)

    def _epoch(self) -> int:
        return min(-(-max(self._step, 1) // self._steps_per_epoch), -(-self._total_steps // self._steps_per_epoch))

    def _still_running(self) -> None:
        """Bring status.json up to date, unless another rank has told there that it failed."""
        if not self.enabled:
            return
        try:
            status = read_status(self.directory)
        except DataError:
            status = None  # somebody's accident; it is written anew
        if status is None or status.state == "running":
            self._write_status("running")

    def _write_status(self, state: State, *, exit_code: int | None = None, error: str | None = None) -> None:
        if not self.enabled:
            return
        self._status_at = time.monotonic()
        write_status(
            self.directory,
            state,
            step=self._step,
            total_steps=self._total_steps,
            epoch=self._epoch(),
            eta_s=self._progress.eta_s,
            metrics=self._metrics,
            checkpoint=self._checkpoint,
            trouble=self._trouble,
            exit_code=exit_code,
            error=error,
        )
