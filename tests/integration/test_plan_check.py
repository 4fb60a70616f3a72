"""The check of `reste plan` against two real ranks runs, and its record is one of rates; its figures judge nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import QUICK, ROOT, environment, reste


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_are_predicted_and_measured_and_the_record_feeds_a_plan(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, ROOT / "benchmarks" / "plan_check.py", "--quick", "--record", record]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text())
    assert len(found["two_ranks"]) == 4
    assert all(row["predicted_images_per_s"] > 0 and row["measured_images_per_s"] > 0 for row in found["two_ranks"])
    assert found["link"]["latency_us"] > 0
    values = ("data.loader=synthetic", "data.image_size=32")
    planned = reste("plan", QUICK, *values, "--record", record, "--gpus", "1,2", "--batches", "128")
    assert planned.returncode == 0, planned.stderr
    assert "beware" not in planned.stdout
    assert "one thread of" in planned.stdout
