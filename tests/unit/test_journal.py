"""The journal: exact, append-only, and whole after whatever killed its writer."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from trainer.errors import DataError
from trainer.tracking.journal import Journal, read_journal

pytestmark = pytest.mark.timeout(30)


def records(path: Path, from_offset: int = 0) -> list[dict]:
    return [record for _, record in read_journal(path, from_offset)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_lines_have_the_documented_fields(path: Path) -> None:
    journal = Journal(path, clock=lambda: 1700000000.25)
    journal.event("started", step=0, fields={"world_size": 2})
    journal.write({"train/loss": 0.5, "train/top1": 12.5}, step=12)
    journal.close()
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {"type": "event", "step": 0, "time": 1700000000.25, "event": "started", "world_size": 2}
    assert second == {
        "type": "metrics",
        "step": 12,
        "time": 1700000000.25,
        "metrics": {"train/loss": 0.5, "train/top1": 12.5},
    }


def test_an_event_cannot_overwrite_its_own_type(path: Path) -> None:
    Journal(path).event("stopped", step=3, fields={"type": "metrics", "step": 9})
    assert [(r["type"], r["step"]) for r in records(path)] == [("event", 3)]


@settings(deadline=None, max_examples=60)
@given(st.floats(width=64))
def test_every_float_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("floats") / "journal.jsonl"
    journal = Journal(path)
    journal.write({"x": value}, step=1)
    journal.close()
    back = records(path)[0]["metrics"]["x"]
    same = struct.pack("<d", back) == struct.pack("<d", value)
    assert same or (math.isnan(value) and math.isnan(back))


def test_the_file_is_strict_json_whatever_the_values(path: Path) -> None:
    journal = Journal(path)
    journal.write({"a": float("nan"), "b": float("inf"), "c": -float("inf")}, step=1)
    journal.event("checked", step=1, fields={"worst": [float("inf")], "path": Path("a/b")})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[0]["metrics"] == {"a": "nan", "b": "inf", "c": "-inf"}
    assert (lines[1]["worst"], lines[1]["path"]) == (["inf"], "a/b")


def test_offsets_are_where_reading_can_go_on(path: Path) -> None:
    journal = Journal(path)
    ends = []
    for step in range(5):
        journal.write({"x": step / 3}, step=step)
        ends.append(journal.offset())
    assert [offset for offset, _ in read_journal(path)] == ends
    assert ends[-1] == path.stat().st_size
    assert [record["step"] for record in records(path, ends[2])] == [3, 4]


def test_a_line_is_readable_as_soon_as_write_returns(path: Path) -> None:
    journal = Journal(path)
    journal.write({"x": 1.0}, step=1)
    assert records(path)[0]["metrics"] == {"x": 1.0}


@pytest.mark.parametrize("torn", [b'{"type": "metr', b"\0\0\0\0", b'{"type": "event", "step": 9}' + b" " * 70000])
def test_a_torn_last_line_is_skipped_by_readers_and_dropped_on_reopening(path: Path, torn: bytes) -> None:
    journal = Journal(path)
    journal.write({"x": 1.0}, step=1)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [record["step"] for record in records(path)] == [1]
    again = Journal(path)
    assert again.offset() == len(whole)
    again.write({"x": 2.0}, step=2)
    assert [record["step"] for record in records(path)] == [1, 2]


def test_a_journal_of_nothing_but_a_torn_line_starts_afresh(path: Path) -> None:
    path.write_bytes(b'{"type"')
    assert Journal(path).offset() == 0


@pytest.mark.parametrize(
    "line", [b"not json\n", b"[]\n", b'{"step": 1}\n', b'{"type": "metrics", "metrics": {"x": []}}\n']
)
def test_a_damaged_line_in_the_middle_is_an_error_that_names_the_byte(path: Path, line: bytes) -> None:
    journal = Journal(path)
    journal.write({"x": 1.0}, step=1)
    journal.close()
    offset = path.stat().st_size
    path.write_bytes(path.read_bytes() + line + b'{"type": "event", "step": 3, "time": 1, "event": "e"}\n')
    with pytest.raises(DataError, match=f"damaged at byte {offset}"):
        records(path)


def test_reading_a_missing_journal_says_what_to_name(path: Path) -> None:
    with pytest.raises(DataError, match="name the folder of a run"):
        records(path)


def test_cutting_goes_back_to_the_offset_and_keeps_the_tail(path: Path) -> None:
    journal = Journal(path)
    journal.write({"x": 1.0}, step=1)
    offset = journal.offset()
    journal.write({"x": 2.0}, step=2)
    journal.close()
    tail = path.read_bytes()[offset:]

    resumed = Journal(path)
    lost = resumed.cut(offset)
    assert lost == path.with_name("journal.lost-1.jsonl")
    assert lost.read_bytes() == tail
    resumed.write({"x": 2.5}, step=2)
    resumed.write({"x": 3.0}, step=3)
    assert [record["metrics"]["x"] for record in records(path)] == [1.0, 2.5, 3.0]

    again = resumed.cut(offset)
    assert again == path.with_name("journal.lost-2.jsonl")
    assert [record["step"] for record in records(again)] == [2, 3]
    assert [record["step"] for record in records(path)] == [1]


def test_cutting_nothing_makes_no_file(path: Path) -> None:
    journal = Journal(path)
    journal.write({"x": 1.0}, step=1)
    assert journal.cut(journal.offset()) is None
    assert sorted(other.name for other in path.parent.iterdir()) == ["journal.jsonl"]


def test_lost_files_are_numbered_after_the_highest(path: Path) -> None:
    path.with_name("journal.lost-10.jsonl").write_text("")
    journal = Journal(path)
    journal.write({"x": 1.0}, step=1)
    assert journal.cut(0) == path.with_name("journal.lost-11.jsonl")


def test_cutting_in_the_middle_of_a_line_is_refused_and_changes_nothing(path: Path) -> None:
    journal = Journal(path)
    journal.write({"x": 1.0}, step=1)
    before = path.read_bytes()
    with pytest.raises(DataError, match="does not belong to this checkpoint"):
        journal.cut(5)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_a_journal_shorter_than_the_checkpoint_is_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(path)
    assert journal.cut(100) is None
    assert "100 bytes before the checkpoint" in caplog.text


def test_a_journal_without_a_path_writes_nothing(tmp_path: Path) -> None:
    journal = Journal(None)
    journal.write({"x": 1.0}, step=1)
    journal.event("started", step=0)
    journal.sync()
    assert (journal.offset(), journal.cut(0)) == (0, None)
    journal.close()
    assert not list(tmp_path.iterdir())


def test_writing_to_a_closed_journal_is_a_mistake_that_shows(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.write({"x": 1.0}, step=1)


def test_a_full_disk_neither_ends_training_nor_tears_a_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(path, clock=lambda: 1700000000.25)
    journal.write({"x": 0.0}, step=0)
    one = journal.offset()
    # A file-size limit makes the kernel write a part and then refuse, as a full disk does.
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * one + one // 2, old[1]))
        for step in range(1, 6):
            journal.write({"x": 0.0}, step=step)
        assert path.read_bytes().endswith(b"}\n")
        assert path.stat().st_size < journal.offset()
        # What a checkpoint records is where the waiting lines will end; it must not count before they are there.
        behind = journal.offset()
        with pytest.raises(OSError, match="wait for room"):
            journal.wait(behind)
        during = [record["step"] for record in records(path)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert during == [0, 1]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    journal.write({"x": 0.0}, step=6)
    journal.wait(behind)
    assert path.read_bytes()[:behind].endswith(b"}\n")
    assert len(path.read_bytes()[:behind].splitlines()) == 6
    assert [record["step"] for record in records(path)] == list(range(7))


def test_kill_9_loses_nothing_that_was_written(path: Path) -> None:
    code = (
        "import sys, itertools; from pathlib import Path; from trainer.tracking.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in itertools.count():\n"
        "    journal.write({'x': step / 7}, step=step); print(step, flush=True)\n"
    )
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        for _ in range(200):
            said = int(child.stdout.readline())
        child.kill()
    steps = [record["step"] for record in records(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > said


def test_reading_follows_a_writer(path: Path) -> None:
    journal, seen, offset = Journal(path), [], 0
    for step in range(6):
        journal.write({"x": 1.0}, step=step)
        if step % 2:
            for end, record in read_journal(path, offset):
                seen.append(record["step"])
                offset = end
    assert seen == list(range(6))


def test_a_line_costs_less_than_a_millisecond(path: Path) -> None:
    journal = Journal(path)
    metrics = {f"indicator/gradient_instability/layer{k}": k / 3 for k in range(50)}
    began = time.process_time()
    for step in range(200):
        journal.write(metrics, step=step)
    assert (time.process_time() - began) / 200 < 1e-3


def test_no_descriptor_reaches_child_processes(path: Path) -> None:
    journal = Journal(path)
    assert not os.get_inheritable(journal._descriptor)
