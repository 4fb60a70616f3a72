"""What an engine wraps: the model in the run's precision, compiled where that pays."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from trainer.pixels import AUTOCAST


class Forward(nn.Module):
    """The model under autocast; the compiled one for the micro-batches of whole batches if it is compiled.

    Those of an epoch's smaller last batch go through the plain model: further shapes would mean further compilations,
    which cost more than the few steps that they serve. All ranks choose alike: a compiler may reorder collectives, so
    that a compiled rank and a plain one could wait for each other.

    Args:
        model: on its device.
        precision: fp64 and fp32 compute as named, bf16 and fp16 under autocast.
        compile: compile the model for the micro-batches of whole batches.
        device: the rank's device.
        channels_last: names of parameters that are handed to the model in this layout, whatever theirs is.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: str,
        compile: bool,
        device: torch.device,
        channels_last: Collection[str] = (),
    ) -> None:
        super().__init__()
        if channels_last:
            model = _ChannelsLast(model, channels_last)
        self.model = model
        self.compiled = torch.compile(model, dynamic=False) if compile else model
        self._autocast = AUTOCAST.get(precision)
        self._device_type = device.type

    def forward(self, images: torch.Tensor, whole: bool) -> Any:
        """(B, C, H, W) to what the model returns, usually (B, classes); `whole` as in `Engine.forward`."""
        with torch.autocast(self._device_type, dtype=self._autocast, enabled=self._autocast is not None):
            return self.compiled(images) if whole else self.model(images)


def some_loss(outputs: Any) -> torch.Tensor:
    """A number that depends on every tensor of a forward pass, for a backward pass whose result nobody wants."""
    return torch.stack([output.float().mean() for output in tree_leaves(outputs)]).sum()


class _ChannelsLast(nn.Module):
    """A model on copies of some parameters; kernels for images would make these copies themselves."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        self.model = model
        self._names = frozenset(names)

    def forward(self, images: torch.Tensor) -> Any:
        copies = {
            name: parameter.contiguous(memory_format=torch.channels_last)
            for name, parameter in self.model.named_parameters()
            if name in self._names
        }
        return torch.func.functional_call(self.model, copies, (images,))
