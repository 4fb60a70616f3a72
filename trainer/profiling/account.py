"""From a chrome trace of some steps to the time that each section takes of a step.

Every moment of the recorded steps is given to one section, so that the sections add up to the steps.

On a CPU the host's own ranges are the sections. Communication is what a rank waits for: time within a collective, and
time in which one is under way while nothing is computed. What hides behind computing is counted apart.

On a GPU the host runs ahead, and its ranges say only which section a kernel belongs to, by where it was launched. The
sections are what the device does: computing first, then communication that no computing hides, then waiting for data
while nothing runs, and what is left is idle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.errors import DataError
from trainer.profiling.intervals import Interval, difference, intersection, length, union

PREFIX = "step/"
"""Before the name of a section, in the trace."""
STEP = "ProfilerStep#"
SECTIONS = {
    "data": "waiting for data",
    "to_device": "to the device",
    "forward": "forward",
    "backward": "backward",
    "communication": "communication",
    "optimizer": "optimizer",
    "pause": "evaluation and saving",
    "other": "other work",
    "idle": "idle",
}
"""Every section with its words in the table. The last two are what the others leave."""
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_COMPUTING = ("forward", "backward", "optimizer", "other", "pause", "to_device")
_COLLECTIVE_OPS = ("c10d::", "_c10d_functional::")


@dataclass(frozen=True)
class Account:
    """Where the time of one rank's steps went.

    Attributes:
        step_ms: length of each step, by the host's clock.
        sections: milliseconds of a step by section, mean over the steps; they add up to the mean step.
        hidden_ms: communication per step that went on while something was computed, not part of the sections.
        on_device: whether the sections are a GPU's.
    """

    step_ms: list[float]
    sections: dict[str, float]
    hidden_ms: float
    on_device: bool


@dataclass
class _Spans:
    """What a trace holds, within the recorded steps; times in microseconds."""

    window: list[Interval]
    host: dict[str, list[Interval]] = field(default_factory=dict)
    ops: list[Interval] = field(default_factory=list)
    collective_ops: list[Interval] = field(default_factory=list)
    under_way: list[Interval] = field(default_factory=list)
    kernels: dict[str, list[Interval]] = field(default_factory=dict)
    nccl: list[Interval] = field(default_factory=list)


def account(trace: dict[str, Any]) -> Account:
    """Divide the recorded steps of a chrome trace (what torch's profiler exports) among the sections.

    Raises:
        DataError: the trace holds no step.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    steps = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith(STEP)]
    if not steps:
        raise DataError("the trace holds no whole step: record it again, with a later log.profile")
    spans = _sort(events, steps)
    on_device = bool(spans.kernels or spans.nccl)
    sections, hidden = _device_sections(spans) if on_device else _host_sections(spans)
    milli = 1e-3 / len(steps)
    return Account(
        step_ms=[step["dur"] / 1000 for step in sorted(steps, key=lambda e: e["ts"])],
        sections={name: sections.get(name, 0.0) * milli for name in SECTIONS},
        hidden_ms=hidden * milli,
        on_device=on_device,
    )


def _span(event: dict[str, Any]) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def _sort(events: list[dict[str, Any]], steps: list[dict[str, Any]]) -> _Spans:
    thread = steps[0]["pid"], steps[0]["tid"]
    spans = _Spans([(min(_span(e)[0] for e in steps), max(_span(e)[1] for e in steps))])
    launches: dict[int, float] = {}
    kernels = []
    for event in events:
        kind, name = event.get("cat"), event["name"]
        here = (event["pid"], event["tid"]) == thread
        if kind in _DEVICE:
            kernels.append(event)
        elif kind in ("cuda_runtime", "cuda_driver"):
            launches[event["args"].get("correlation", -1)] = event["ts"]
        elif kind == "cpu_op" and here:
            (spans.collective_ops if name.startswith(_COLLECTIVE_OPS) else spans.ops).append(_span(event))
        elif kind == "user_annotation" and name.startswith("gloo:"):
            spans.under_way.append(_span(event))
        elif kind == "user_annotation" and here and name.startswith(PREFIX):
            spans.host.setdefault(name.removeprefix(PREFIX), []).append(_span(event))
    _outermost(spans)
    _sort_kernels(spans, kernels, launches)
    return spans


def _outermost(spans: _Spans) -> None:
    """Leave out sections within a pause: an evaluation has images to move, too."""
    pauses = spans.host["pause"] = union(spans.host.get("pause", []))
    for name in list(spans.host):
        found = intersection(union(spans.host[name]), spans.window)
        spans.host[name] = found if name == "pause" else difference(found, pauses)


def _sort_kernels(spans: _Spans, kernels: list[dict[str, Any]], launches: dict[int, float]) -> None:
    starts = sorted((*interval, name) for name, found in spans.host.items() for interval in found)
    for kernel in sorted(kernels, key=lambda e: launches.get(e["args"].get("correlation", -2), e["ts"])):
        if "nccl" in kernel["name"].lower():
            spans.nccl.append(_span(kernel))
            continue
        at = launches.get(kernel["args"].get("correlation", -2), kernel["ts"])
        while len(starts) > 1 and starts[0][1] <= at and starts[1][0] <= at:
            starts.pop(0)
        within = bool(starts) and starts[0][0] <= at < starts[0][1]
        section = starts[0][2] if within else "other"
        spans.kernels.setdefault(section if section != "data" else "other", []).append(_span(kernel))


def _host_sections(spans: _Spans) -> tuple[dict[str, float], float]:
    under_way = intersection(union(spans.under_way), spans.window)
    collective_ops = intersection(union(spans.collective_ops), spans.window)
    busy = union([*spans.ops, *collective_ops, *spans.host.get("data", [])])
    edges = sorted({edge for found in spans.host.values() for interval in found for edge in interval})
    waits = []
    for start, end in _cut(difference(spans.window, busy), edges):
        # From where a collective is under way to where the rank computes again: waking up is part of the wait.
        meeting = intersection([(start, end)], under_way)
        if meeting:
            waits.append((meeting[0][0], end))
    communication = union([*collective_ops, *waits])
    sections = {name: length(difference(found, communication)) for name, found in spans.host.items()}
    sections["communication"] = length(communication)
    sections["other"] = length(spans.window) - sum(sections.values())
    return sections, length(difference(under_way, communication))


def _cut(intervals: list[Interval], edges: list[float]) -> list[Interval]:
    """Intervals cut into pieces where they hold an edge; both sorted."""
    pieces = []
    at = 0
    for start, end in intervals:
        while at < len(edges) and edges[at] <= start:
            at += 1
        while at < len(edges) and edges[at] < end:
            pieces.append((start, edges[at]))
            start = edges[at]
            at += 1
        pieces.append((start, end))
    return pieces


def _device_sections(spans: _Spans) -> tuple[dict[str, float], float]:
    sections: dict[str, float] = {}
    covered: list[Interval] = []
    nccl = union(spans.nccl)
    claims = [
        *((name, spans.kernels.get(name, [])) for name in _COMPUTING),
        ("communication", nccl),
        ("data", spans.host.get("data", [])),
        ("pause", spans.host.get("pause", [])),
    ]
    hidden = 0.0
    for name, claimed in claims:
        mine = difference(intersection(union(claimed), spans.window), covered)
        sections[name] = sections.get(name, 0.0) + length(mine)
        if name == "communication":
            hidden = length(intersection(nccl, spans.window)) - length(mine)
        covered = union([*covered, *mine])
    sections["idle"] = length(spans.window) - length(covered)
    return sections, hidden
