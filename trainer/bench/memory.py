"""Bytes: what a forward pass keeps for the backward pass, and the most that is alive within a step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], object], module: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters and buffers left out.

    Compiled functions keep theirs through autograd too, so that the same hook sees what the compiler chose to keep.

    Args:
        forward: run once; compiled before, if it is to be.
        module: whose parameters and buffers are alive anyway.
    """
    own = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = forward()
    del held
    return sum(kept.values())


def peak_bytes(step: Callable[[], object], device: torch.device, resident: Iterable[Any]) -> int:
    """The most bytes of tensors that are alive at once within a training step.

    What is alive before the step, and the most that it adds to that: on a GPU by the allocator's own count, on a CPU by
    the allocations that torch's profiler sees. Memory that oneDNN takes for itself is no tensor's and not seen.

    Args:
        step: run once; it leaves no gradients.
        device: where.
        resident: modules, optimizers and tensors that are the step's own and alive before it.
    """
    alive = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(resident)}
    added = _added_on_gpu(step, device) if device.type == "cuda" else _added_on_cpu(step)
    return sum(alive.values()) + added


def _added_on_gpu(step: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _added_on_cpu(step: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        found.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return _highest(event for event in events if event.get("name") == "[memory]")


def _highest(events: Iterable[dict[str, Any]]) -> int:
    """The most bytes alive among allocations and releases; what was allocated before them does not count."""
    alive: dict[int, int] = {}
    now = highest = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        address, change = event["args"]["Addr"], event["args"]["Bytes"]
        if change > 0:
            now += change - alive.get(address, 0)
            alive[address] = change
        else:
            now -= alive.pop(address, 0)
        highest = max(highest, now)
    return highest


def _tensors(resident: Iterable[Any]) -> Iterator[Tensor]:
    for thing in resident:
        if isinstance(thing, nn.Module):
            yield from (*thing.parameters(), *thing.buffers())
        elif isinstance(thing, torch.optim.Optimizer):
            yield from (v for state in thing.state.values() for v in state.values() if isinstance(v, Tensor))
        else:
            yield thing


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
