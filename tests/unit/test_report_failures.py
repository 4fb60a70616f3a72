"""What goes wrong while a report is made, and what is left all the same: the finished run, the rest of the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import CLASSES, write_run

from trainer import checkpoint, checkpoints
from trainer.report import keep_report
from trainer.report.layers import layers_of, look_into, turned
from trainer.report.page import Report
from trainer.report.reading import read_runs


def test_a_page_that_fails_as_nobody_foresaw_leaves_a_finished_run_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path / "run", kept=0)
    (tmp_path / "run" / "result.json").write_text('{"samples": "many"}')
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match="format code"):
        Report(read_runs([tmp_path / "run"]), []).html()
    keep_report(tmp_path / "run")
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "report.html cannot be written (ValueError): try `reste report" in warning.getMessage()
    assert warning.exc_info is None, "people get one line"
    assert "Traceback" in caplog.text, "and the log file all"
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_checkpoint_that_a_live_run_removes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    write_run(tmp_path / "run", kept=3)
    first, second, third = found = checkpoints.steps(tmp_path / "run" / "checkpoints")
    layers = layers_of(third)
    assert [(flips.before, flips.after) for flips in turned(found, layers)] == [(20, 40), (40, 60)]
    first.rename(checkpoint.temporary(first))
    assert [(flips.before, flips.after) for flips in turned(found, layers)] == [(40, 60)]
    second.rename(checkpoint.temporary(second))
    assert turned(found, layers) == []


def test_weights_that_cannot_be_read_are_a_note_and_not_the_end_of_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run", kept=1)
    newest = checkpoints.steps(tmp_path / "run" / "checkpoints")[-1]
    progress = checkpoint.Progress(80, 0, 1.0, {}, {}, None, 0, [])
    text = (newest / "config.yaml").read_text()
    checkpoint.save(newest.parent, {}, progress=progress, config_yaml=text, about={"classes": CLASSES})
    facts = look_into(tmp_path / "run")
    assert "holds no model.pt" in str(facts.missing)
    assert facts.weights is None
