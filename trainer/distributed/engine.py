"""What the loop asks of an engine. `ddp.py` and `deepspeed.py` are two; the loop never knows which."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn


class Engine(Protocol):
    """Forward, backward and update of one model over all ranks."""

    module: nn.Module
    """The bare model, for evaluation, indicators and checkpoints."""

    def settle(self, images: torch.Tensor) -> None:
        """Decide what is decided once, such as compilation, on a batch like those to come; leaves no trace."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward of one micro-batch; gradients are exchanged in the last one."""

    def forward(self, images: torch.Tensor, *, whole: bool) -> Any:
        """(B, C, H, W) normalised images to what the model returns, its logits or more, in the run's precision.

        `whole` says, alike on all ranks, whether the micro-batch is of a whole batch; what is compiled serves those.
        """

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a scalar loss that is this rank's share of the global mean times the world size."""

    def finish_gradients(self) -> torch.Tensor:
        """Unscale and clip; returns the global gradient norm before clipping (0-d). Gradients are final after it."""

    def gather_gradients(self) -> None:
        """Make every parameter's `grad` its final averaged gradient until the step; a collective."""

    def step(self, *, lr: float, blocked: torch.Tensor) -> None:
        """Move the weights unless `blocked` (0-d float, above zero: do not); then clear the gradients."""

    def state(self) -> dict[str, Any]:
        """Full optimizer and loss-scaler state of any world size, loadable with `weights_only=True`."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""

    def close(self) -> None:
        """Give back what the engine holds beside tensors; called before the ranks part."""
