"""A copy of a training state on the host, made while training waits, written while it goes on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """One copy of a nested state. The next one is made in the same memory, so that there is never more than one.

    From a GPU the copy goes to pinned memory, and the host waits once for all tensors.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._taken = 0

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors hold."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def take(self, state: Any) -> Any:
        """A copy of dictionaries, lists, tuples, tensors and plain values; the one before is no more."""
        self._taken = 0
        taken = self._copy(state)
        del self._buffers[self._taken :]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return taken

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._buffer(value.detach()).copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            # Not rebuilt: a state dict carries the versions of its modules as an attribute.
            taken = copy.copy(value)
            taken.update((key, self._copy(item)) for key, item in value.items())
            return taken
        if isinstance(value, list | tuple):
            return type(value)([self._copy(item) for item in value])
        return copy.deepcopy(value)

    def _buffer(self, tensor: Tensor) -> Tensor:
        """Memory for the next tensor: that of the last time if it fits."""
        number = self._taken
        self._taken += 1
        old = self._buffers[number] if number < len(self._buffers) else None
        if old is not None and (old.shape, old.dtype, old.stride()) == (tensor.shape, tensor.dtype, tensor.stride()):
            return old
        self._buffers[number : number + 1] = [torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)]
        return self._buffers[number]
