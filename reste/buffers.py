"""Buffers: numbers that change as training goes on, where one compiled graph reads them; passes that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn


class Scheduled(nn.Module):
    """A module whose scheduled numbers are 0-d non-persistent float32 buffers, written in place.

    So one compiled graph and one CUDA graph serve a whole schedule. The buffers are in no state dict: a schedule
    recomputes them from the step. Casts of the module leave them alone, because 2.9843 would become 2.984375 in
    bfloat16; moves take them along, and a move from the meta device gives them their first values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, float] = {}

    def hold(self, name: str, value: float) -> None:
        """Make the buffer `name` with its first value."""
        self._first[name] = value
        self.register_buffer(name, torch.full((), value, dtype=torch.float32), persistent=False)

    def write_progress(self, progress: float) -> None:
        """Write what holds at this share of training, in [0, 1], in place; nothing here, where nothing follows it."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .to(), .half() and their kin all come through here.
        before = {name: self._buffers[name] for name in self._first}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            assert buffer is not None
            device = getattr(self, name).device
            kept = torch.full_like(buffer, self._first[name], device=device) if buffer.is_meta else buffer.to(device)
            setattr(self, name, kept)
        return self


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give every buffer its value back afterwards: forward passes within leave no trace in batch statistics."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
