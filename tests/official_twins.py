"""The published layer and networks once more, as plain modules: nothing here imports `reste` or `models`.

Names of parameters are those of official checkpoints; every network is built and run by the same few lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Binarizer(torch.autograd.Function):
    """Forward: torch's sign, 0 at 0. Backward: the published slope at `power`, in its four cases."""

    @staticmethod
    def forward(ctx, x, power):
        ctx.save_for_backward(x)
        ctx.power = power
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        slope = torch.zeros_like(x)
        near, right, left = x.abs() <= 0.1, (x > 0.1) & (x <= 1.5), (x < -0.1) & (x >= -1.5)
        slope[near] = math.pow(0.1, 1 / ctx.power) / 0.1
        slope[right] = x[right].pow((1 - ctx.power) / ctx.power) / ctx.power
        slope[left] = (-x[left]).pow((1 - ctx.power) / ctx.power) / ctx.power
        return slope * gradient, None


class BinaryConv(nn.Conv2d):
    """3x3, zero padding 1: signs of input and weight, one undetached scale multiplied into the weight's."""

    power = 1.0
    binary_input = True

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean(dim=(0, 1, 2, 3), keepdim=True)
        weight = Binarizer.apply(self.weight, self.power) * scale
        x = Binarizer.apply(x, self.power) if self.binary_input else x
        return F.conv2d(x, weight, None, self.stride, self.padding)


class Unit(nn.Module):
    """Two convolutions and what joins them; `kind` is plain, bireal or classic (full precision)."""

    def __init__(self, kind: str, conv: type[nn.Conv2d], channels: tuple[int, int], stride: int, shortcut: str) -> None:
        super().__init__()
        self.kind, self.around, self.stride = kind, shortcut, stride
        self.grows = channels[0] != channels[1]
        self.conv1 = conv(*channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[1])
        self.conv2 = conv(channels[1], channels[1], 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels[1])
        if self.grows and shortcut != "pad":
            projection = nn.Conv2d(*channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels[1])
            setattr(self, shortcut, nn.Sequential(*projection))

    def shortcut_of(self, x: Tensor) -> Tensor:
        if not self.grows:
            return x
        if self.around != "pad":
            return getattr(self, self.around)(x)
        zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
        return torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        around = self.shortcut_of(x)
        if self.kind == "classic":
            return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + around).relu()
        x = self.bn1(self.conv1(x).relu())
        if self.kind == "bireal":
            x = around = x + around
        return self.bn2(self.conv2(x).relu()) + around


class ResNet(nn.Module):
    """Stem, stages, mean, batch norm, classifier."""

    def __init__(
        self, kind: str, conv: type[nn.Conv2d], depths: tuple[int, ...], width: int, shortcut: str, imagenet: bool
    ) -> None:
        super().__init__()
        self.imagenet = imagenet
        self.conv1 = nn.Conv2d(3, width, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = []
        before = width
        for i, depth in enumerate(depths):
            after, units = width * 2**i, []
            for j in range(depth):
                units.append(Unit(kind, conv, (before, after), 2 if i and not j else 1, shortcut))
                before = after
            self.stages.append(f"layer{i + 1}")
            setattr(self, self.stages[-1], nn.Sequential(*units))
        self.bn2 = nn.BatchNorm1d(before)
        setattr(self, "fc" if imagenet else "linear", nn.Linear(before, 1000 if imagenet else 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x).relu())
        x = F.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        for stage in self.stages:
            x = getattr(self, stage)(x)
        x = self.bn2(F.avg_pool2d(x, x.shape[2:]).flatten(1))
        return (self.fc if self.imagenet else self.linear)(x)


class VggSmall(nn.Module):
    """Six convolutions, the first in full precision; a max pool after every second."""

    def __init__(self, conv: type[nn.Conv2d], norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        widths = (3, 128, 128, 256, 256, 512, 512)
        for i in range(6):
            kind = conv if i else nn.Conv2d
            setattr(self, f"conv{i}", kind(widths[i], widths[i + 1], 3, padding=1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(widths[i + 1]))
        self.fc = nn.Linear(512 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(6):
            x, norm = getattr(self, f"conv{i}")(x), getattr(self, f"bn{i}")
            x = norm(x).relu() if self.norm_first else norm(x.relu())
            x = F.max_pool2d(x, 2) if i % 2 else x
        return self.fc(x.flatten(1))


OFFICIAL: dict[str, Callable[[], nn.Module]] = {
    "resnet18_1w1a": lambda: ResNet("bireal", BinaryConv, (2, 2, 2, 2), 64, "downsample", True),
    "resnet34_1w1a": lambda: ResNet("bireal", BinaryConv, (3, 4, 6, 3), 64, "downsample", True),
    "resnet20_1w1a": lambda: ResNet("plain", BinaryConv, (3, 3, 3), 16, "pad", False),
    "resnet20_bireal_1w1a": lambda: ResNet("bireal", BinaryConv, (3, 3, 3), 16, "pad", False),
    "resnet18_cifar_1w1a": lambda: ResNet("plain", BinaryConv, (2, 2, 2, 2), 64, "shortcut", False),
    "vgg_small_1w1a": lambda: VggSmall(BinaryConv, norm_first=False),
}
"""The six binary networks under the names they have here."""

OFFICIAL_FULL_PRECISION: dict[str, Callable[[], nn.Module]] = {
    "resnet18_1w1a": lambda: ResNet("bireal", nn.Conv2d, (2, 2, 2, 2), 64, "downsample", True),
    "resnet20": lambda: ResNet("classic", nn.Conv2d, (3, 3, 3), 16, "pad", False),
    "resnet18_cifar": lambda: ResNet("classic", nn.Conv2d, (2, 2, 2, 2), 64, "shortcut", False),
    "vgg_small": lambda: VggSmall(nn.Conv2d, norm_first=True),
}
"""The four full-precision networks, likewise; the first is `resnet18` in the official code."""


def randomise(model: nn.Module) -> None:
    """Batch norms of a network that has been trained a while, and exact zeros on both sides of binary convolutions."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight[0] = module.bias[0] = 0.0
        if isinstance(module, BinaryConv):
            with torch.no_grad():
                module.weight[::2, 0, 1] = 0.0
