"""Gradient checkpointing that leaves batch-norm statistics alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def _statistics_kept(owner: nn.Module) -> Iterator[None]:
    """Within: batch norms in training mode normalise as ever, but do not move their running statistics."""
    norms = [m for m in owner.modules() if getattr(m, "num_batches_tracked", None) is not None]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    # Not `track_running_stats = False`: a checkpoint wants the same tensors saved in both passes.
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum = momentum
            # Not `-= 1`: the second pass may end before it reaches the last norm.
            norm.num_batches_tracked.copy_(batches)


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, *, owner: nn.Module) -> Tensor:
    """`function(x)`, whose inner activations are dropped and computed again in the backward pass.

    A plain checkpoint would count the batch into the running statistics once more in the second forward, and
    a model trained that way would evaluate differently. A compiled graph updates them once by construction.

    Args:
        function: maps (B, C, H, W) to (B, C', H', W').
        x: its input, kept until the backward pass.
        owner: the module that holds the batch norms which `function` runs.
    """
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(owner)

    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)
