"""The tests of the kernels that need a GPU, on a CPU: triton interprets the kernels there, in a process of its own.

Whether triton compiles or interprets is decided when it is imported, once for a process.
"""

from __future__ import annotations

import re
import subprocess
import sys

from trainings import ROOT, environment

ON_DEVICE = ROOT / "tests" / "gpu" / "test_kernels_on_device.py"


def test_interpreted_kernels_pass_the_tests_of_kernels_on_a_device() -> None:
    plain = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q", "-m", "gpu"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, str(ON_DEVICE)],
        env=environment() | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 100, "nearly all of them run here"
