"""The running statistics of batch norms, slower as the learning rate falls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Lets a step move running means and variances by a share of what batch norm has moved them.

    Batch norm takes r <- r + m (batch - r) with m = 0.1, so that r is an average over the last 19 batches or so, and as
    noisy as these are few: in a binary network, whose signs turn that noise into flips, by a point of top-1 and more.
    With the share f this is r <- r + f m (batch - r). Towards the end the weights hardly move, and an average over
    many more batches describes them better: f follows the learning rate.

    m is a number in compiled code; so the step takes its usual course, and what it did is taken back in part. Nothing
    has to be saved for this: it is a function of the step and of the statistics before it.

    Args:
        model: whose batch norms these are.
        share: f after so many completed steps, in (0, 1].
    """

    def __init__(self, model: nn.Module, share: Callable[[int], float]) -> None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        found = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
        self._now = [statistic for statistic in found if statistic is not None]
        self._before = [statistic.clone() for statistic in self._now]
        self._share = share

    def begin(self, step: int) -> None:
        """Before the forward passes of the step after `step` completed ones."""
        if self._slows(step):
            torch._foreach_copy_(self._before, self._now)

    def end(self, step: int) -> None:
        """After them."""
        if self._slows(step):
            torch._foreach_lerp_(self._before, self._now, self._share(step))
            torch._foreach_copy_(self._now, self._before)

    def _slows(self, step: int) -> bool:
        return bool(self._now) and self._share(step) < 1
