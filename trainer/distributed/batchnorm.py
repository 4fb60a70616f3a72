"""Batch norm over ranks, exact for uneven and empty batches, on CPUs and GPUs; and which ranks share it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.distributed import collectives
from trainer.distributed.statistics import BatchNormGroup, Normalise, global_moments
from trainer.errors import ConfigError

__all__ = [
    "BatchNormGroup",
    "SyncBatchNorm",
    "bn_groups",
    "choose_group_size",
    "convert_batchnorm",
    "make_bn_group",
]


class SyncBatchNorm(_BatchNorm):
    """Batch norm of (N, C), (N, C, L) or (N, C, H, W) that in training takes its statistics over several ranks.

    Equal to `nn.BatchNorm2d` on the ranks' batches put together, whatever their sizes, 0 included: outputs,
    input gradients, running statistics (unbiased variance of the joint batch), and parameter gradients once
    summed over the ranks. In eval mode it is plain batch norm. State-dict names are those of `nn.BatchNorm2d`.
    For low-precision inputs the statistics are float32; the output has the input's dtype.

    Every rank of the group must run the same layers in the same order, forward and backward.

    Args:
        num_features: C.
        group: the ranks that share statistics.
        eps, momentum, affine, track_running_stats: as for `nn.BatchNorm2d`.
    """

    def __init__(
        self,
        num_features: int,
        group: BatchNormGroup,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"expected (N, {self.num_features}, ...), got {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape and dtype; in training N may be 0."""
        self._check_input_dim(x)
        if not self.training:
            return super().forward(x)
        mean, variance, count = global_moments(x, self.group)
        if self.track_running_stats:
            self._track(mean, variance, count)
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        return Normalise.apply(x, weight, bias, mean, variance, count, self.eps, self.group)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those of a joint batch, unless that is empty."""
        self.num_batches_tracked += count > 0
        most = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(count.dtype)
        # Counts are whole numbers: 0 if there is no batch, the rate otherwise.
        rate = torch.clamp(count, max=most)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(unbiased, rate)

    def extra_repr(self) -> str:
        """As of `nn.BatchNorm2d`, and the number of ranks."""
        return f"{super().extra_repr()}, ranks={self.group.size}"


def convert_batchnorm(model: nn.Module, group: BatchNormGroup | None) -> nn.Module:
    """Replace every `nn.BatchNorm1d/2d/3d` by a synchronised one with the same parameters and buffers.

    Args:
        model: changed in place and returned, or its replacement if it is a batch norm itself.
        group: the ranks that share statistics; None leaves the model as it is.

    Raises:
        ConfigError: the model has another kind of batch norm.
    """
    if group is None or isinstance(model, SyncBatchNorm):
        return model
    if type(model) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return _converted(model, group)
    if isinstance(model, _BatchNorm):
        kind = type(model).__name__
        raise ConfigError(f"{kind} cannot share statistics over ranks: set batchnorm.sync=off")
    for name, child in model.named_children():
        setattr(model, name, convert_batchnorm(child, group))
    return model


def _converted(norm: _BatchNorm, group: BatchNormGroup) -> SyncBatchNorm:
    new = SyncBatchNorm(
        norm.num_features,
        group,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    new._parameters = norm._parameters
    new._buffers = norm._buffers
    return new.train(norm.training)


def bn_groups(world: int, size: int) -> list[list[int]]:
    """Neighbouring ranks, `size` at a time; `size` divides `world`."""
    assert world % size == 0, f"{size} does not divide {world}"
    return [list(range(first, first + size)) for first in range(0, world, size)]


def choose_group_size(wanted_images: int, *, images_per_rank: int, world: int, local_world: int) -> int:
    """How many ranks must share statistics so that these are over at least `wanted_images`.

    The smallest divisor of the world size that reaches it: among groups that stay within a node or take whole
    nodes first, then among all. If none does: the world.

    Args:
        wanted_images: images over which statistics shall be taken.
        images_per_rank: images of a micro-batch on one rank.
        world: number of ranks.
        local_world: ranks on each node.
    """
    divisors = [size for size in range(1, world + 1) if world % size == 0]
    aligned = [size for size in divisors if local_world % size == 0 or size % local_world == 0]
    for size in [*aligned, *divisors]:
        if size * images_per_rank >= wanted_images:
            return size
    return world


def make_bn_group(size: int) -> BatchNormGroup | None:
    """This rank's group of `size` neighbours, or None for 1; a collective.

    The communicator is never the default one: gradient buckets travel there, and how these interleave with
    batch norm's messages depends on whether a rank's backward pass is compiled.

    Raises:
        ConfigError: on every rank, if they ask for different sizes, as if nodes run different numbers of ranks.
    """
    collectives.check_equal("number of ranks that share batch norm", str(size))
    if size == 1:
        return None
    group = collectives.new_subgroup(bn_groups(collectives.world_size(), size))
    return BatchNormGroup(group.group_name, size)


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Make running statistics equal on all ranks, their mean, before they are evaluated or saved; a collective.

    Layers that share statistics over the world have equal ones already and are left untouched.
    """
    world = collectives.world_size()
    for module in model.modules():
        everywhere = isinstance(module, SyncBatchNorm) and module.group.size == world
        if not isinstance(module, _BatchNorm) or everywhere or world == 1:
            continue
        for statistic in (module.running_mean, module.running_var):
            if statistic is not None:
                collectives.all_reduce_(statistic)
                statistic /= world
