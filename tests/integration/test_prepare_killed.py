"""`kill -9` in the middle of a scan: no index appears, and the next call goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from image_tree import make_tree

from trainer.data.index import load_index
from trainer.data.prepare import scan
from trainer.data.prepare.folder import prepare_folder
from trainer.errors import DataError

SLOW_PREPARE = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from trainer.data.prepare.folder import prepare_folder
    prepare_folder(Path(sys.argv[1]), workers=1, progress=lambda done, total: time.sleep(0.3))
    """
)


@pytest.mark.timeout(120)
def test_a_killed_scan_leaves_no_index_and_is_continued(tmp_path: Path, monkeypatch) -> None:
    make_tree(tmp_path, train=90, val=30, size=(40, 40))
    memory = tmp_path / "index" / "partial.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", SLOW_PREPARE, str(tmp_path)], env=environment)
    try:
        while not (memory.exists() and memory.stat().st_size):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(DataError, match="has no index"):
        load_index(tmp_path, "train")

    decoded: list[Path] = []
    original = scan.check_file
    monkeypatch.setattr(scan, "check_file", lambda path: (decoded.append(path), original(path))[1])
    assert prepare_folder(tmp_path, workers=2).samples == {"train": 90, "val": 30}
    assert 0 < len(decoded) < 120
    assert not memory.exists()
    assert len(load_index(tmp_path, "train")) == 90
