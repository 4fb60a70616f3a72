"""The benchmarks run and print every row; their figures are nobody's pass or fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import ROOT, environment


@pytest.mark.slow
@pytest.mark.timeout(300)
# `step` compiles for minutes.
@pytest.mark.parametrize(("which", "count"), [("loader", 3), ("loop", 1), ("indicators", 1)])
def test_a_benchmark_prints_its_ratios(tmp_path: Path, which: str, count: int) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, ROOT / "benchmarks" / "run.py", which, "--quick", "--repeats=1", "--record", record]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = json.loads(record.read_text())["rows"]
    assert len(rows) == count
    assert all(row["median"] > 0 and row["ours_ms"] > 0 and row["other_ms"] > 0 for row in rows)
