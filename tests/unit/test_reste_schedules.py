"""Power schedules against values written by hand."""

from __future__ import annotations

import math

import pytest

from reste import POWER_SCHEDULES, constant_power, cosine_power, linear_power, power_schedule

# Epoch of 250, then o for an end of 3, to four places: the published schedule.
PUBLISHED = [
    (0, 1.0000),  # starts as the clipped straight-through estimator
    (25, 1.0246),  # a tenth of the time, an eightieth of the way
    (125, 1.5858),  # half the time: 1 + 2 (1 - sqrt(1/2))
    (187, 2.2288),
    (249, 2.9874),  # the last epoch: the end itself is never reached
]


@pytest.mark.parametrize(("epoch", "expected"), PUBLISHED)
def test_cosine_gives_the_published_values(epoch, expected):
    assert cosine_power(epoch / 250, 3.0) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 1.0),
        (1 / 3, 1 + 4 * (1 - math.sqrt(3) / 2)),  # cos 30 deg
        (0.5, 1 + 4 * (1 - math.sqrt(0.5))),  # cos 45 deg
        (2 / 3, 3.0),  # cos 60 deg = 1/2
        (1.0, 5.0),
    ],
)
def test_cosine_at_angles_known_by_heart(progress, expected):
    assert cosine_power(progress, 5.0) == pytest.approx(expected, rel=1e-14)


def test_cosine_starts_at_exactly_one_and_ends_at_exactly_the_end():
    for end in (1.0, 1.5, 3.0, 2.984, 10.0):
        assert cosine_power(0, end) == 1
        assert cosine_power(1, end) == pytest.approx(end, rel=1e-15)
    assert cosine_power(1, 3.0) == 3.0


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (1.0, 3.0)])
def test_linear_values(progress, expected):
    assert linear_power(progress, 3.0) == expected


@pytest.mark.parametrize("progress", [0, 0.3, 1])
def test_constant_values(progress):
    assert constant_power(progress, 2) == 2.0
    assert isinstance(constant_power(progress, 2), float)


@pytest.mark.parametrize("name", sorted(POWER_SCHEDULES))
def test_an_end_of_one_is_one_throughout(name):
    assert {power_schedule(name)(step / 10, 1.0) for step in range(11)} == {1.0}


@pytest.mark.parametrize("name", sorted(POWER_SCHEDULES))
@pytest.mark.parametrize(
    ("progress", "end", "message"),
    [
        (-0.01, 3.0, "progress must be in"),
        (1.01, 3.0, "progress must be in"),
        (math.nan, 3.0, "progress must be in"),
        (0.5, 0.9, "power must be"),
        (0.5, math.inf, "power must be"),
        (0.5, math.nan, "power must be"),
    ],
)
def test_arguments_out_of_range_are_refused(name, progress, end, message):
    with pytest.raises(ValueError, match=message):
        power_schedule(name)(progress, end)


def test_schedules_are_found_by_name():
    assert power_schedule("cosine") is cosine_power
    assert power_schedule("linear") is linear_power
    assert power_schedule("constant") is constant_power


def test_an_unknown_schedule_is_answered_with_the_nearest():
    message = r"^unknown power schedule 'cosin'; did you mean 'cosine'\? known: constant, cosine, linear$"
    with pytest.raises(ValueError, match=message):
        power_schedule("cosin")
