"""The account of a trace: traces written by hand, whose answers were worked out on paper; interval sets by counting."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from trainer.errors import DataError
from trainer.profiling.account import SECTIONS, account
from trainer.profiling.intervals import difference, intersection, length, union
from trainer.profiling.table import account_lines

POINTS = 40
sets = st.lists(st.tuples(st.integers(0, POINTS), st.integers(0, POINTS)), max_size=8)


def cells(intervals: list[tuple[float, float]]) -> set[int]:
    """The unit cells that intervals with whole ends cover."""
    return {cell for cell in range(POINTS) for start, end in intervals if start <= cell and cell + 1 <= end}


@given(sets, sets)
def test_interval_sets_are_sets_of_unit_cells(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = union(one), union(other)
    assert cells(a) == cells(one)
    assert cells(intersection(a, b)) == cells(one) & cells(other)
    assert cells(difference(a, b)) == cells(one) - cells(other)
    assert length(a) == len(cells(one))
    for found in (a, intersection(a, b), difference(a, b)):
        assert all(start < end for start, end in found)
        assert all(before[1] <= after[0] for before, after in pairwise(found))


def event(name: str, start: float, end: float, cat: str = "cpu_op", tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": start, "dur": end - start, "args": args}


def note(name: str, start: float, end: float, tid: int = 1) -> dict[str, Any]:
    return event(name, start, end, cat="user_annotation", tid=tid)


def trace(*events: dict[str, Any]) -> dict[str, Any]:
    return {"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}


CPU = (
    note("ProfilerStep#7", 1000, 11_000),
    note("step/data", 1000, 3000),
    note("step/to_device", 3000, 3500),
    note("step/forward", 3500, 6000),
    event("aten::conv2d", 3500, 5900),
    # Statistics of other ranks, asked for and waited for within the forward pass.
    event("_c10d_functional::wait_tensor", 4000, 4300),
    note("step/backward", 6200, 9000),
    event("autograd::engine::evaluate_function: Conv", 6200, 8000),
    # It is sent while the rest is computed, and waited for from 8000 on; the rank wakes up 100 after its end.
    note("gloo:all_reduce", 7000, 8700, tid=2),
    event("aten::as_strided", 8800, 8900),
    note("step/optimizer", 9000, 9800),
    event("aten::add_", 9000, 9800),
    note("ProfilerStep#8", 11_000, 17_000),
    note("step/pause", 12_000, 14_000),
    note("step/to_device", 12_500, 13_000),  # of the evaluation
)


def test_a_step_on_a_cpu_is_divided_as_on_paper() -> None:
    found = account(trace(*CPU))
    assert found.step_ms == [10, 6]
    assert not found.on_device
    in_two_steps = {name: value * 2 for name, value in found.sections.items()}
    assert in_two_steps == pytest.approx(
        {
            "data": 2.0,
            "to_device": 0.5,
            "forward": 2.5 - 0.3,
            "backward": 2.8 - 0.8,
            "communication": 0.3 + 0.8,
            "optimizer": 0.8,
            "pause": 2.0,
            "other": 0.2 + 1.2 + 4.0,
            "idle": 0.0,
        }
    )
    assert found.hidden_ms * 2 == pytest.approx(1.0)  # 7000 to 8000


GPU = (
    note("ProfilerStep#3", 0, 10_000),
    note("step/data", 0, 1000),
    note("step/to_device", 1000, 1100),
    note("step/forward", 1100, 1500),
    note("step/backward", 1500, 2500),
    note("step/optimizer", 2500, 2600),
    event("cudaMemcpyAsync", 1050, 1060, cat="cuda_runtime", correlation=1),
    event("cudaLaunchKernel", 1200, 1210, cat="cuda_runtime", correlation=2),
    # Launched by autograd's own thread while the host waits in backward.
    event("cudaLaunchKernel", 2400, 2410, cat="cuda_runtime", tid=5, correlation=3),
    event("cudaLaunchKernel", 2450, 2460, cat="cuda_runtime", tid=5, correlation=4),
    event("cudaLaunchKernel", 2550, 2560, cat="cuda_runtime", correlation=5),
    event("cudaLaunchKernel", 2700, 2710, cat="cuda_runtime", correlation=6),
    event("Memcpy HtoD", 1100, 1600, cat="gpu_memcpy", tid=70, correlation=1),
    event("conv_forward", 1500, 3500, cat="kernel", tid=7, correlation=2),
    event("conv_backward", 3500, 7500, cat="kernel", tid=7, correlation=3),
    event("ncclDevKernel_AllReduce_Sum_f32", 7000, 8000, cat="kernel", tid=20, correlation=4),
    event("multi_tensor_sgd", 8000, 8500, cat="kernel", tid=7, correlation=5),
    event("isfinite", 8500, 8600, cat="kernel", tid=7, correlation=6),
)


def test_a_step_on_a_gpu_is_what_the_device_does() -> None:
    found = account(trace(*GPU))
    assert found.on_device
    assert found.sections == pytest.approx(
        {
            "data": 1.0,
            "to_device": 0.4,
            "forward": 2.0,
            "backward": 4.0,
            "communication": 0.5,
            "optimizer": 0.5,
            "pause": 0.0,
            "other": 0.1,
            "idle": 0.1 + 1.4,
        }
    )
    assert found.hidden_ms == pytest.approx(0.5)


names = st.sampled_from(
    ["step/data", "step/forward", "step/backward", "step/pause", "aten::add", "c10d::allreduce_", "gloo:all_reduce"]
)


@settings(max_examples=200)
@given(st.lists(st.tuples(names, st.integers(0, 90), st.integers(1, 30)), max_size=12))
def test_the_sections_of_any_trace_add_up_to_its_steps(drawn: list[tuple[str, int, int]]) -> None:
    events = []
    at = 0
    for name, start, span in drawn:
        kind = "cpu_op" if "::" in name else "user_annotation"
        # The host's sections follow one another, as the loop makes them; everything else may overlap.
        start = at if name.startswith("step/") else start
        at = start + span if name.startswith("step/") else at
        events.append(event(name, start, start + span, cat=kind, tid=2 if name.startswith("gloo") else 1))
    found = account(trace(note("ProfilerStep#1", 10, 60), note("ProfilerStep#2", 60, 80), *events))
    assert set(found.sections) == set(SECTIONS)
    assert math.isclose(sum(found.sections.values()), fmean(found.step_ms))
    assert min(found.sections.values()) > -1e-12
    assert found.hidden_ms > -1e-12


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(DataError, match=r"log\.profile"):
        account(trace(*CPU[1:12]))


def test_the_table_has_a_line_for_each_section_and_shows_how_far_ranks_lie_apart() -> None:
    one, other = account(trace(*CPU)), account(trace(*CPU, note("step/optimizer", 16_000, 16_200)))
    text = "\n".join(account_lines([one, other], (7, 8)))
    assert "steps 7 to 8 took 8.0 ms each (6.0 to 10.0)" in text
    assert "communication               0.55    6.9   0.6 to 0.6" in text
    assert "optimizer                   0.40    5.0   0.4 to 0.5" in text
    assert "idle" not in text
    assert "0.50 ms more of communication hid behind computing" in text
