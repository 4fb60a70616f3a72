"""The fault `tracker_down`: MLflow is away for a part of a real run, and has all of it in the end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from spawn import run_ranks
from tracked_runs import in_journal, in_store, without_times
from trainings import QUICK, SMALL

from trainer.tracking.sent import mlflow_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(250), pytest.mark.filterwarnings("default::ResourceWarning")]


def train_with_fault(config: str, overrides: list[str], faults: str) -> tuple[int, str]:
    """Train as this rank under a schedule of faults; exit code and standard error. Top level, for `run_ranks`."""
    from trainer.main import run_rank
    from trainer.tracking import mlflow_sink

    os.environ["RESTE_FAULTS"] = faults
    mlflow_sink.MlflowSender.__init__.__kwdefaults__["poll_s"] = 0.05  # type: ignore[index]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run_rank(Path(config), overrides)
    return code, said.getvalue()


def test_a_tracker_that_is_down_for_some_steps_has_the_whole_journal_in_the_end(
    tmp_path: Path, digits: Path, empty_store: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(empty_store, runs / "mlflow.db")
    overrides = [*SMALL[:-1], "data.loader=torchvision", f"data.root={digits}", f"run.dir={runs}", "run.name=x"]
    overrides += ["train.epochs=3", "eval.every=0"]
    [(code, said)] = run_ranks(train_with_fault, 1, str(QUICK), overrides, "tracker_down@2-70", join=False)
    assert code == 0, said
    assert said.count("metrics wait in the journal") == 1, said
    ledger = [json.loads(line) for line in (runs / "x" / "faults.jsonl").read_text().splitlines()]
    assert [entry["fault"] for entry in ledger] == ["tracker_down@2-70"]
    uri, run_id = mlflow_run(runs / "x") or ("", "")
    journal = in_journal(runs / "x" / "journal.jsonl")
    assert without_times(in_store(uri, run_id)) == without_times(journal)
    assert max(step for _, step, _, _ in journal) == 93
