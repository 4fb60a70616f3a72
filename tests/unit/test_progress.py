"""Progress lines, their pace, and silence where nobody reads."""

from __future__ import annotations

import io

import pytest

from trainer.tracking.progress import Moment, Progress, format_duration, format_line

pytestmark = pytest.mark.timeout(30)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (72, "1 min 12 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_durations_show_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_full_line_reads_like_the_documented_one() -> None:
    moment = Moment(
        step=120,
        total_steps=1800,
        epoch=3,
        epochs=40,
        loss=0.5119,
        top1=83.21,
        images_per_s=1234.4,
        data_wait=0.021,
        eta_s=72.0,
    )
    assert format_line(moment) == (
        "step 120/1800  epoch 3/40  loss 0.512  top-1 83.2 %  1234 images/s  data wait 2 %  ETA 1 min 12 s"
    )


def test_what_is_not_known_yet_is_left_out() -> None:
    assert format_line(Moment(step=1, total_steps=10, epoch=1, epochs=2)) == "step 1/10  epoch 1/2"
    assert "loss nan" in format_line(Moment(step=1, total_steps=10, epoch=1, epochs=2, loss=float("nan")))


def test_lines_come_every_few_seconds_and_the_last_state_always() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(20, epochs=1, interval_s=5, stream=stream, clock=clock) as progress:
        for step in range(1, 21):
            clock.now += 1
            progress.update(step, epoch=1)
    steps = [int(line.split()[1].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert steps == [1, 6, 11, 16, 20]


def test_finishing_twice_says_it_once() -> None:
    stream = io.StringIO()
    progress = Progress(2, epochs=1, stream=stream, interval_s=0)
    progress.update(2, epoch=1)
    progress.finish()
    progress.finish()
    assert stream.getvalue().count("\n") == 1


def test_metrics_stay_until_the_next_ones() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(10, epochs=1, interval_s=0, stream=stream, clock=clock)
    progress.update(1, epoch=1, loss=0.25, top1=50.0)
    progress.update(2, epoch=1)
    progress.update(3, epoch=1, loss=0.125)
    lines = stream.getvalue().splitlines()
    assert "loss 0.250  top-1 50.0 %" in lines[1]
    assert "loss 0.125  top-1 50.0 %" in lines[2]


def test_the_eta_is_the_rest_at_the_recent_pace() -> None:
    clock = Clock()
    progress = Progress(1000, epochs=1, enabled=False, clock=clock)
    clock.now += 300.0  # compilation before the first step does not count
    progress.update(1, epoch=1)
    assert progress.eta_s is None
    for step in range(2, 101):
        clock.now += 2.0
        progress.update(step, epoch=1)
    assert progress.eta_s == pytest.approx(900 * 2.0)
    for step in range(101, 201):
        clock.now += 4.0
        progress.update(step, epoch=1)
    assert progress.eta_s == pytest.approx(800 * 4.0)


def test_the_eta_is_zero_at_the_end_and_absent_without_movement() -> None:
    clock = Clock()
    progress = Progress(3, epochs=1, enabled=False, clock=clock)
    for _ in range(3):
        clock.now += 5
        progress.update(1, epoch=1)
    assert progress.eta_s is None
    clock.now += 0.1
    progress.update(3, epoch=1)
    assert progress.eta_s == 0


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_other_ranks_are_silent(stream: io.StringIO) -> None:
    with Progress(10, epochs=1, enabled=False, stream=stream, interval_s=0) as progress:
        progress.update(1, epoch=1, loss=1.0)
        progress.note("hello")
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_survives_an_error() -> None:
    stream = Terminal()

    def train() -> None:
        with Progress(10, epochs=1, stream=stream) as progress:
            progress.update(4, epoch=1, loss=0.5)
            progress.note("saved [step 4]")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        train()
    shown = stream.getvalue()
    assert "step 4/10" in shown
    assert "saved [step 4]" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor must come back"


def test_no_control_characters_reach_a_log_file() -> None:
    stream = io.StringIO()
    with Progress(10, epochs=1, stream=stream, interval_s=0) as progress:
        progress.update(4, epoch=1, loss=0.5)
        progress.note("saved")
    assert all(character.isprintable() or character == "\n" for character in stream.getvalue())


def test_the_eta_has_the_evaluations_to_come_and_the_pace_has_none() -> None:
    clock = Clock()
    progress = Progress(100, epochs=4, eval_every=30, enabled=False, clock=clock)
    for step in range(1, 31):
        clock.now += 2.0
        progress.update(step, epoch=1)
    clock.now += 50.0
    progress.evaluated(50.0)
    clock.now += 2.0
    progress.update(31, epoch=2)
    # After steps 60, 90 and 100.
    assert progress.eta_s == pytest.approx(69 * 2.0 + 3 * 50.0)
    for step in range(32, 100):
        clock.now += 2.0
        progress.update(step, epoch=2)
    assert progress.eta_s == pytest.approx(2.0 + 50.0)


def test_an_evaluation_shows_how_far_it_is() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(4, epochs=1, interval_s=5, stream=stream, clock=clock)
    progress.update(4, epoch=1)
    for done in range(1, 11):
        clock.now += 1
        progress.evaluating(done / 10)
    progress.evaluated(10.0)
    progress.finish()
    lines = stream.getvalue().splitlines()
    assert lines[:3] == [f"step 4/4  epoch 1/1{more}" for more in ("", "  evaluating 50 %", "  evaluating 100 %")]
    assert lines[3] == "step 4/4  epoch 1/1"
