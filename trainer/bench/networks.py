"""Whole training steps of ResNet-18, binary, dense and naive; and the memory that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch._functorch.config as functorch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import models  # noqa: F401  (registers the names)
from reste import set_power
from trainer.bench.core import Bench, Goal, Row, ratio
from trainer.bench.estimator import binary_layer
from trainer.bench.memory import peak_bytes, saved_bytes
from trainer.bench.naive import make_naive

DENSE = {"weight_bits": 32, "activation_bits": 32}


@dataclass(frozen=True, eq=False)
class Step:
    """Forward, loss, backward and SGD on a batch that is at hand.

    Attributes:
        model: what is trained.
        optimizer: of its parameters.
        forward: images to logits.
        labels: (B,) int64.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    forward: Callable[[], Tensor]
    labels: Tensor

    def __call__(self) -> None:
        """One step."""
        F.cross_entropy(self.forward().float(), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def what_is_trained(bench: Bench) -> tuple[str, int, int]:
    """Name of the network, pixels of an image, images of a batch."""
    return ("resnet20_1w1a", 32, 2) if bench.quick else ("resnet18_1w1a", 224, 256 if bench.is_cuda else 32)


class Steps:
    """Training steps on one batch of noise: 32 images of 224 pixels, on a GPU 256.

    Args:
        bench: how they are measured.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._name, self.size, self.batch = what_is_trained(bench)
        self.images = torch.randn(self.batch, 3, self.size, self.size, device=bench.device)
        self.labels = torch.arange(self.batch, device=bench.device)
        self.where = f"{self._name}, {self.size} px, batch {self.batch}"

    def fast(self, model: nn.Module) -> Step:
        """Compiled, channels_last, under autocast."""
        model = model.to(self._bench.device, memory_format=torch.channels_last)
        images = self.images.to(memory_format=torch.channels_last)
        compiled = self._bench.compile(model)

        def forward() -> Tensor:
            with self._bench.autocast():
                return compiled(images)

        return self._step(model, forward)

    def plain(self, model: nn.Module) -> Step:
        """Eager float32, NCHW."""
        model = model.to(self._bench.device)
        return self._step(model, lambda: model(self.images))

    def _step(self, model: nn.Module, forward: Callable[[], Tensor]) -> Step:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
        return Step(model, optimizer, forward, self.labels)

    def binary(self) -> Step:
        """Our network at power 2."""
        model = self._ours()
        set_power(model, 2.0)
        return self.fast(model)

    def dense(self) -> Step:
        """Our network with 32 bits on both sides."""
        return self.fast(self._ours(**DENSE))

    def naive(self) -> Step:
        """Our network, its binary layers written the plain way."""
        return self.plain(make_naive(self._ours()))

    def _ours(self, **bits: int) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(self._name, estimator="reste", **bits)


def step_rows(bench: Bench) -> Iterator[Row]:
    """A training step, binary against dense, dense against torchvision's, binary against naive."""
    steps = Steps(bench)
    torch.manual_seed(0)
    times = bench.race(
        {
            "binary": steps.binary(),
            "dense": steps.dense(),
            "torchvision": steps.fast(torchvision.models.resnet18()),
            "naive": steps.naive(),
        }
    )
    where = f"{steps.where}, {bench.precision}"
    over_dense = Goal(0.90, 1.0) if bench.is_cuda else Goal(0.85, 1.0)
    over_naive = Goal(5, 8) if bench.is_cuda else Goal(5, 6.5)
    dense, binary = times["dense"], times["binary"]
    yield ratio("step", "rate, binary over its dense twin", where, binary, dense, over_dense)
    yield ratio("step", "rate, dense twin over torchvision's", where, dense, times["torchvision"], Goal(0.95, 1.0))
    yield ratio("step", "rate, binary over naive eager float32", where, binary, times["naive"], over_naive)


def step_rates(bench: Bench, rows: list[Row]) -> dict[str, Any]:
    """What makes the record of `step_rows` one of rates, too, as `trainer.plan.rate.RateRecord` reads it."""
    name, size, batch = what_is_trained(bench)
    points = [{"images": batch, "images_per_s": round(1000 * batch / rows[0].ours, 3)}]
    return {"model": name, "image_size": size, "precision": bench.precision.replace("float", "fp"), "points": points}


def memory_rows(bench: Bench) -> Iterator[Row]:
    """What a binary convolution keeps for its backward pass; the most that a step of the network takes."""
    yield _saved_row(bench, recompute=False)
    yield _saved_row(bench, recompute=True)
    steps = Steps(bench)
    where = f"{steps.where}, {bench.precision}"
    binary, recomputed = (_peak(bench, steps, steps.binary, recompute=recompute) for recompute in (False, True))
    dense, naive = (_peak(bench, steps, make) for make in (steps.dense, steps.naive))
    of_dense, of_naive = Goal(1.0, 0.7, "lower"), Goal(0.5, 0.35, "lower")
    yield ratio("memory", "peak of a step, binary / dense", where, [binary], [dense], of_dense, unit="MiB")
    what = "peak, signs recomputed, binary / dense"
    yield ratio("memory", what, where, [recomputed], [dense], of_dense, unit="MiB")
    yield ratio("memory", "peak of a step, binary / naive float32", where, [binary], [naive], of_naive, unit="MiB")


def _peak(bench: Bench, steps: Steps, make: Callable[[], Step], *, recompute: bool = False) -> float:
    """MiB."""
    torch._dynamo.reset()  # else the code of one would serve the other
    with functorch.patch(ban_recompute_materialized_backward=not recompute):
        step = make()
        step()  # what is compiled and allocated once
    return peak_bytes(step, bench.device, [step.model, step.optimizer, steps.images]) / 2**20


def _saved_row(bench: Bench, *, recompute: bool) -> Row:
    batch, channels, size = (2, 8, 8) if bench.quick else (32, 64, 56)
    layer = binary_layer(channels, bench.device)
    x = torch.randn(batch, channels, size, size, device=bench.device, dtype=bench.dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    torch._dynamo.reset()  # else the code of one row would serve the other, whose layer looks the same
    compiled = bench.compile(layer)

    def forward() -> Tensor:
        with bench.autocast():
            return compiled(x)

    with functorch.patch(ban_recompute_materialized_backward=not recompute):
        forward().sum().backward()
    saved = saved_bytes(forward, layer) / 2**20
    activation = x.numel() * x.element_size() / 2**20
    where = f"batch norm, sign, 3x3 conv, {batch} x {channels} x {size} x {size}, {bench.precision}"
    goal = Goal(2.05, 1.1, "lower")
    what = f"kept / one activation, signs {'recomputed' if recompute else 'kept too'}"
    return ratio("memory", what, where, [saved], [activation], goal, unit="MiB")
