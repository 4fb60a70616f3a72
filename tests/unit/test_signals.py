"""Requests to stop, as real signals to this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import signals
from trainer.signals import Requests, StoppedEarly, handling


@pytest.fixture(autouse=True)
def _not_under_nohup() -> Iterator[None]:
    """What nohup, or a runner like it, sets for everything that it starts: SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", signals.SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_noted_and_the_handlers_before_come_back(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in signals.SIGNALS}
    requests = Requests()
    with requests.received():
        assert requests.reason is None
        send(number)
        assert requests.reason == number.name
    assert {n: signal.getsignal(n) for n in signals.SIGNALS} == before


def test_a_script_that_listens_for_its_ranks_says_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    assert now <= Requests().began_at <= time.time()
    monkeypatch.setenv(signals.STARTED_AT, "1795290713.25")
    assert Requests().began_at == 1795290713.25


def test_the_first_signal_gives_the_reason() -> None:
    requests = Requests()
    with requests.received():
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            send(number)
    assert requests.reason == "SIGUSR1"


def test_a_ctrl_c_heard_twice_counts_once_and_a_later_one_interrupts() -> None:
    requests = Requests()
    with requests.received():
        for _ in range(3):
            send(signal.SIGINT)
        time.sleep(signals.SAME_S + 0.1)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_where_nothing_is_to_save_a_signal_stops_at_once_and_only_there() -> None:
    requests = Requests()
    with requests.received():
        with pytest.raises(StoppedEarly, match="SIGTERM"), requests.at_once():
            send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert not issubclass(StoppedEarly, Exception), "a library that tries again would swallow it"


def test_a_signal_that_comes_in_a_finaliser_stops_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    class Finalised:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    def work() -> None:
        with requests.at_once():
            Finalised()  # Python cannot raise there, says so on the error stream and goes on
            went_on.append(True)

    requests, went_on = Requests(), []
    hook = sys.unraisablehook
    with requests.received(), pytest.raises(StoppedEarly, match="SIGTERM"):
        work()
    assert went_on
    assert "Traceback" not in capsys.readouterr().err
    assert sys.unraisablehook is hook


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling(lambda number, frame: pytest.fail("answered")):
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_signals_are_listened_to_before_anything_heavy_is_loaded() -> None:
    code = "import sys, trainer.main, launch.local; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
