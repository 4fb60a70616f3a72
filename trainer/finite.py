"""The agreement that loss and gradient are finite, made before the optimizer moves, without waiting for the device."""

from __future__ import annotations

import torch

from trainer.errors import NonFiniteError


class FiniteGuard:
    """Remembers the first step whose loss or gradient norm was not finite; from then on every update is blocked.

    Both inputs are sums over all ranks, so every rank comes to the same verdict.
    """

    def __init__(self, device: torch.device) -> None:
        self._blocked = torch.zeros((), device=device)
        self._first_step = torch.full((), -1, dtype=torch.int64, device=device)

    def check(self, loss: torch.Tensor, gradient_norm: torch.Tensor, step: int) -> torch.Tensor:
        """Whether the update of `step` must not happen: a 0-d tensor, 1 or 0, on the device."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient_norm))
        self._first_step = torch.where(bad & (self._blocked == 0), step, self._first_step)
        self._blocked = torch.maximum(self._blocked, bad.float())
        return self._blocked

    def raise_if_blocked(self) -> None:
        """Read the verdict on the host.

        Raises:
            NonFiniteError: some step since the start was not finite; no weight has moved since.
        """
        if self._blocked.item():
            error = NonFiniteError(
                f"loss or gradient is not finite at step {int(self._first_step)}; no weight has moved since the step "
                "before: start a new run.name with a lower optim.lr, a longer optim.warmup or train.clip_norm, "
                "from the "
                "last good weights by model.init=RUN/checkpoints/step_N"
            )
            error.everywhere = True
            raise error
