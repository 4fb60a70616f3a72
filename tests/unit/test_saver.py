"""Saving in a thread: what is written is what was, one at a time, and no failure is swallowed."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import checkpoint, checkpoints
from trainer.errors import ConfigError
from trainer.saver import News, Saver
from trainer.snapshot import Snapshot

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    saver = Saver(tmp_path / "checkpoints", keep=2, retry_s=0.02)
    yield saver
    saver.close()


def save(saver: Saver, step: int, weights: torch.Tensor | None = None, **options: Any) -> None:
    saver.save(
        {"model": {"w": torch.full((4,), float(step)) if weights is None else weights}},
        progress=checkpoint.Progress(step, 0, 0.0, {}, {}, None, 0, []),
        config_yaml="seed: 1\n",
        about={"world_size": 1},
        **{"best": False, **options},
    )


def names(tmp_path: Path) -> list[str]:
    return [path.name for path in checkpoints.steps(tmp_path / "checkpoints")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def full_for(times: int, started: threading.Event | None = None) -> Callable[[], None]:
    """What a disk says that has no room so many times."""
    tries = iter(range(times))

    def first() -> None:
        if started is not None:
            started.set()
        if next(tries, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")

    return first


def test_what_is_written_is_what_was_when_the_save_began(tmp_path: Path, saver: Saver) -> None:
    go = threading.Event()
    weights = torch.arange(4.0)
    save(saver, 1, weights, first=lambda: assert_true(go.wait(30)))
    weights.zero_()
    assert names(tmp_path) == [], "an unfinished one does not count"
    assert saver.news() is None
    go.set()
    saver.finish()
    [path] = checkpoints.steps(tmp_path / "checkpoints")
    assert torch.equal(checkpoint.load_payload(path, "model")["w"], torch.arange(4.0))
    assert saver.news() == News(path, None)
    assert saver.news() is None, "told once"


def assert_true(value: bool) -> None:
    assert value


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, saver: Saver) -> None:
    go, at_work, most = threading.Event(), [0], [0]

    def first() -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        assert go.wait(30)
        at_work[0] -= 1

    save(saver, 1, first=first)
    second = threading.Thread(target=lambda: [save(saver, step, first=first) for step in (2, 3, 4)])
    second.start()
    second.join(0.2)
    assert second.is_alive(), "it waits"
    assert names(tmp_path) == []
    assert sum(thread.name == "saver" for thread in threading.enumerate()) == 1
    go.set()
    second.join()
    saver.finish()
    assert most == [1]
    assert names(tmp_path) == ["step_00000003", "step_00000004"]


def test_the_best_is_marked_and_kept_and_older_ones_go(tmp_path: Path, saver: Saver) -> None:
    for step in (1, 2, 3, 4):
        save(saver, step, best=step == 1)
    assert saver.newest() == tmp_path / "checkpoints" / "step_00000004"
    assert names(tmp_path) == ["step_00000001", "step_00000003", "step_00000004"]
    assert checkpoints.best(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step_00000001"


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, saver: Saver, caplog: pytest.LogCaptureFixture) -> None:
    save(saver, 1, first=full_for(3))
    until(lambda: names(tmp_path) == ["step_00000001"])
    saver.finish()
    assert saver.news() == News(tmp_path / "checkpoints" / "step_00000001", None)
    assert sum("is not saved (No space left on device): it takes 0.0 MiB" in m for m in caplog.messages) == 3
    assert "step 1 is saved: there is room again" in caplog.messages


def test_a_state_that_did_not_fit_gives_way_to_a_newer_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = Saver(tmp_path / "checkpoints", keep=2, retry_s=1000)
    failed = threading.Event()
    save(saver, 1, first=full_for(1, failed), best=True)
    assert failed.wait(30)
    until(lambda: (news := saver.news()) is not None and "step 1, the best so far, is not saved" in str(news.trouble))
    started = time.monotonic()
    save(saver, 2)
    saver.finish()
    assert time.monotonic() - started < 100, "it does not wait for the next try"
    assert names(tmp_path) == ["step_00000002"]
    assert "step 1, the best so far, was never saved" in caplog.messages
    assert saver.news() == News(tmp_path / "checkpoints" / "step_00000002", None)


def test_the_end_of_a_run_tries_once_more_and_says_if_it_is_not_saved(tmp_path: Path) -> None:
    saver = Saver(tmp_path / "checkpoints", keep=2, retry_s=1000)
    save(saver, 1)
    save(saver, 2, first=full_for(1))
    saver.finish()
    assert names(tmp_path) == ["step_00000001", "step_00000002"]
    save(saver, 3, first=full_for(100))
    with pytest.raises(ConfigError, match=r"step 3 is not saved.*free some space.*go on from step_00000002") as caught:
        saver.finish()
    assert "\n" not in str(caught.value)


def test_every_other_failure_reaches_the_training_thread(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    saver = Saver(tmp_path / "file", keep=2)
    for ask in (saver.finish, saver.newest, saver.news, lambda: save(saver, 2)):
        save(saver, 1)
        until(lambda: not any(thread.name == "saver" for thread in threading.enumerate()))
        with pytest.raises(ConfigError, match=r"cannot save .*Not a directory: mend that") as caught:
            ask()
        assert "\n" not in str(caught.value)
    saver = Saver(tmp_path / "checkpoints", keep=2)
    save(saver, 1, first=lambda: [][0])
    with pytest.raises(IndexError):
        saver.finish()
    saver.finish()


def test_a_failure_nobody_asked_about_is_logged_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    saver = Saver(tmp_path / "file", keep=2)
    save(saver, 1)
    saver.close()
    assert [r.levelname for r in caplog.records if "the last save failed" in r.message] == ["ERROR"]


def test_time_that_the_loop_stood_still_is_told_once(saver: Saver) -> None:
    assert saver.metrics() == {}
    for _ in range(2):
        with saver.stalling():
            time.sleep(0.01)
    assert 0.02 <= saver.metrics()["perf/save_stall_s"] < 10
    assert saver.metrics() == {}


def test_a_snapshot_is_equal_apart_and_made_in_the_same_memory_again() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    net[0].weight.data = net[0].weight.data.to(memory_format=torch.channels_last)
    wide = torch.arange(12.0).reshape(3, 4)
    state = {"net": net.state_dict(), "more": [wide[:, 1], wide.t(), torch.tensor(3, dtype=torch.int64)], "lr": 0.5}
    snapshot = Snapshot()
    taken = snapshot.take(state)
    assert taken["lr"] == 0.5
    assert type(taken["net"]) is type(state["net"])
    assert taken["net"]._metadata == state["net"]._metadata
    for name, tensor in state["net"].items():
        copy = taken["net"][name]
        assert (copy.dtype, copy.stride()) == (tensor.dtype, tensor.stride())
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() != tensor.data_ptr()
    assert [torch.equal(a, b) for a, b in zip(taken["more"], state["more"], strict=True)] == [True] * 3
    before = {name: tensor.data_ptr() for name, tensor in taken["net"].items()}
    size = snapshot.nbytes
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(1)
    again = snapshot.take(state)
    assert {name: tensor.data_ptr() for name, tensor in again["net"].items()} == before
    assert all(torch.equal(again["net"][name], tensor) for name, tensor in state["net"].items())
    assert snapshot.nbytes == size
    assert snapshot.take({"lr": 1}) == {"lr": 1}
    assert snapshot.nbytes == 0
