"""Batch statistics over ranks and the normalisation that differentiates through them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_functional = torch.ops._c10d_functional
# Up to here the backward pass's sums are gathered and added locally: one round, gloo's all-reduce takes two.
_GATHERED_SUM = 8


@dataclass(frozen=True)
class BatchNormGroup:
    """Ranks that share batch statistics.

    Attributes:
        name: of their communicator. A name, since a module that holds it must be copied and pickled.
        size: number of ranks.
    """

    name: str
    size: int


def _gather(row: Tensor, group: BatchNormGroup) -> Tensor:
    """(n,) on every rank -> (ranks, n), the same on all."""
    gathered = _functional.all_gather_into_tensor(row, group.size, group.name)
    return _wait(gathered).view(group.size, -1)


def _sum(row: Tensor, group: BatchNormGroup) -> Tensor:
    if group.size <= _GATHERED_SUM:
        return _gather(row, group).sum(0)
    return _wait(_functional.all_reduce(row, "sum", group.name))


_waited_s = 0.0


def waited_s() -> float:
    """Seconds that this process has waited for other ranks' statistics.

    Waits within compiled code are not counted, nor those of a GPU that the host does not take part in.
    """
    return _waited_s


def _wait(result: Tensor) -> Tensor:
    global _waited_s
    if torch.compiler.is_compiling():
        return _functional.wait_tensor(result)
    began = time.perf_counter()
    done = _functional.wait_tensor(result)
    _waited_s += time.perf_counter() - began
    return done


def _local_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of this rank's batch; zeros if it is empty."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    others = [0, *range(2, x.ndim)]
    if x.numel() == 0:
        zeros = x.sum(others, dtype=dtype)
        return zeros, zeros
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # What batch norm itself uses there; eager var_mean takes 3 to 17 times as long on a CPU.
        return torch.batch_norm_update_stats(x.to(dtype), None, None, 0.0)
    variance, mean = torch.var_mean(x.to(dtype), others, correction=0)
    return mean, variance


@torch.no_grad()
def global_moments(x: Tensor, group: BatchNormGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics per channel over all ranks of the group; a collective.

    Ranks exchange (mean, variance, count), and every one combines them in the same order (Chan, Golub and
    LeVeque 1979). Unlike a sum of squares this cancels nothing, and it gives the same bits on all ranks.

    Args:
        x: (N, C, ...), N may be 0 and differ between ranks.

    Returns:
        Mean (C,), biased variance (C,) and number of values per channel (0-d), float32 or float64.
    """
    mean, variance = _local_moments(x)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    rows = _gather(torch.cat((count, mean, variance)), group)
    counts, means, variances = rows.split((1, x.shape[1], x.shape[1]), dim=1)
    total = counts.sum()
    share = counts / total.clamp(min=1)
    mean = (share * means).sum(0)
    apart = means - mean
    variance = (share * torch.addcmul(variances, apart, apart)).sum(0)
    return mean, variance, total


class Normalise(torch.autograd.Function):
    """y = weight h + bias, h = (x - mean) / sqrt(variance + eps), where mean and variance depend on all x.

    With n values per channel over all ranks of the group, and sums over all of them,

        dL/dx = weight / sqrt(variance + eps) (g - sum(g) / n - h sum(g h) / n),    g = dL/dy

    (Ioffe and Szegedy 2015, section 3). The gradients of weight and bias are this rank's sums alone.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, variance, count, eps, group):  # type: ignore[no-untyped-def]
        """Normalise (N, C, ...) by given statistics; see the class."""
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """Gradients of x, weight and bias; a collective."""
        x, weight, mean, variance, count = ctx.saved_tensors
        gh_sum, g_sum = _gradient_sums(gradient, x, weight, mean, variance, ctx.eps)
        slope = weight * torch.rsqrt(variance + ctx.eps)
        gh, g = _sum(torch.cat((gh_sum, g_sum)), ctx.group).view(2, -1) * (slope / -count)
        # The two terms that are subtracted are an affine function of h, as batch norm's output is.
        dx = F.batch_norm(x.to(mean.dtype), mean, variance, gh, g, training=False, eps=ctx.eps)
        dx = dx.addcmul_(gradient, slope.view(-1, *[1] * (x.ndim - 2))).to(x.dtype)
        return dx, gh_sum, g_sum, None, None, None, None, None


def _gradient_sums(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """This rank's sum(g h) and sum(g) per channel, in one pass over both tensors."""
    if x.numel() == 0:
        # Of the gradient: what does not depend on it the compiler moves to the forward pass, collectives included.
        zeros = gradient.sum([0, *range(2, x.ndim)], dtype=mean.dtype)
        return zeros, zeros
    # Empty, not None: the kernel for GPUs insists on these two, and then takes the given mean and variance.
    unsaved = mean.new_empty(0)
    _, gh_sum, g_sum = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, mean, variance, unsaved, unsaved, False, eps, [False, True, True]
    )
    return gh_sum, g_sum
