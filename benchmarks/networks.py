"""The trainer's loop against a bare one, a step with a probe against one without, the network against its kin."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

import models  # noqa: F401  (registers the names)
from reste import BinaryConv2d, set_power
from trainer.assembly import build
from trainer.config import load_config
from trainer.events import log_indicators, log_training
from trainer.loop import train_step
from trainer.run import Plan, Run

QUICK = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
CORES = torch.get_num_threads()


def loop_rows(compare: Callable[..., Any], repeats: int, quick: bool) -> Iterator[Any]:
    """Chunks of trainer steps (with what the loop does around them) in turn with chunks of bare steps."""
    torch.set_num_threads(CORES)
    chunk = 2 if quick else 20
    with tempfile.TemporaryDirectory() as folder:
        run = small_run(folder, batch_size=32)
        # The bare loop keeps its batch at hand, so that only the trainer pays for its loader.
        images, labels = run.pixels(run.feed.take())
        model = timm.create_model("resnet20_1w1a", estimator="reste", num_classes=10)
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, fused=True)

        def ours() -> None:
            for _ in range(chunk):
                train_step(run)
                run.state.step += 1
                run.recorder.tick(run.state.step)
                run.stopper.agreed(run.state.step)
            log_training(run)

        def bare() -> None:
            for _ in range(chunk):
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        yield compare("bare loop, resnet20_1w1a 32 px", ">= 0.97", ours, bare, repeats)
        run.recorder.abandon()
        run.close()


def small_run(folder: str, *, batch_size: int) -> Run:
    """ResNet-20 on made-up images of 32 pixels, set to train for longer than anybody measures."""
    overrides = ["data.loader=synthetic", "data.image_size=32", f"run.dir={folder}", "tracking.enabled=false"]
    overrides += ["train.epochs=1000", "train.compile=false", "log.print_s=1000"]
    return build(load_config(QUICK, [*overrides, f"train.batch_size={batch_size}"]))


def indicator_rows(compare: Callable[..., Any], repeats: int, quick: bool) -> Iterator[Any]:
    """A step with a probe of all indicators, its host read and its journal line, in turn with a step without.

    A ratio r is a cost of (r - 1) / 100 of the training at the default of one probe in 100 steps.
    """
    torch.set_num_threads(CORES)
    with tempfile.TemporaryDirectory() as folder:
        run = small_run(folder, batch_size=4 if quick else 128)
        unprobed = replace(run.plan, indicators_every=0)

        def step(plan: Plan) -> None:
            run.plan = plan
            indicators = train_step(run)
            run.state.step += 1
            if indicators:
                log_indicators(run, indicators)

        probed = replace(unprobed, indicators_every=1)
        yield compare(
            "step with a probe / step without, resnet20_1w1a 32 px",
            "<= 2 (1 % at one in 100)",
            lambda: step(unprobed),
            lambda: step(probed),
            repeats,
        )
        run.recorder.abandon()
        run.close()


def step_rows(compare: Callable[..., Any], repeats: int, quick: bool) -> Iterator[Any]:
    """One training step of ResNet-18: forward, loss, backward, SGD.

    Ours are compiled and channels_last, in bf16 where the processor computes in it, else in float32: emulated bf16 says
    nothing about either network.
    """
    torch.set_num_threads(CORES)
    size, batch = (64, 2) if quick else (224, 8)
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch)
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtype, name = (torch.bfloat16, "bf16") if native else (None, "float32 (no bf16 here)")
    binary = compiled_step(images, labels, dtype)
    twin = compiled_step(images, labels, dtype, weight_bits=32, activation_bits=32)
    yield compare(f"full-precision twin, resnet18 {size} px, both {name}", ">= 0.7", binary, twin, repeats)
    yield compare(f"naive eager float32 ReSTE, ours {name}", ">= 4", binary, naive_step(images, labels), repeats)


def stepper(model: nn.Module, forward: Callable[[], torch.Tensor], labels: torch.Tensor) -> Callable[[], None]:
    """A whole step around a forward pass."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        F.cross_entropy(forward().float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compiled_step(
    images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype | None, **bits: int
) -> Callable[[], None]:
    """A step of our network, compiled."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18_1w1a", estimator="reste", **bits).to(memory_format=torch.channels_last)
    set_power(model, 2.0)
    inputs = images.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, dynamic=False)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return compiled(inputs)

    return stepper(model, forward, labels)


class _NaiveSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, power)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, power = ctx.saved_tensors
        slope = torch.ones_like(gradient)
        # Host numbers out of a tensor, writes through masks: what a first version looks like.
        inner = (x <= 0.1) & (x >= -0.1)
        outer = ~inner
        slope[inner] = math.pow(0.1, 1 / power) / 0.1
        slope[outer] = (1 / power) * torch.pow(torch.abs(x[outer]), (1 - power) / power)
        slope[(x > 1.5) | (x < -1.5)] = 0
        return gradient * slope, None


class _NaiveConv(nn.Conv2d):
    power = torch.tensor(2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = _NaiveSign.apply(self.weight, self.power) * self.weight.abs().mean()
        return F.conv2d(_NaiveSign.apply(x, self.power), weight, self.bias, self.stride, self.padding)


def naive_step(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """The same network in eager float32 NCHW, its binary layers written the plain way."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18_1w1a", estimator="reste")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BinaryConv2d):
            plain = _NaiveConv(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=False
            )
            plain.weight = layer.weight
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain)
    return stepper(model, lambda: model(images), labels)
