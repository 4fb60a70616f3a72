"""Binary residual networks of the ReSTE paper (Wu et al., ICCV 2023, arXiv:2308.06689): ImageNet and CIFAR.

Stem, shortcuts and classifier stay in full precision; the 3x3 convolutions of the blocks are binary. A block
computes sign -> convolution -> ReLU -> batch norm, adds its shortcut, and applies nothing after the sum.
Structure, initialisation and state-dict names are those of github.com/DravenALG/ReSTE: its checkpoints load
strictly. With 32 bits on both sides the same structure is a full-precision network; the official
full-precision ones for CIFAR are other networks and have a file of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.backbone import Backbone
from models.binarization import ConvMaker
from models.entry import build, default_cfg
from models.parts import (
    Shortcut,
    he_convolutions,
    he_convolutions_and_linear,
    padding_shortcut,
    projection_shortcut,
    pytorch_default,
)
from models.recompute import recompute


class Block(nn.Module, ABC):
    """Two binary 3x3 convolutions; how they are bridged is what the kinds differ in.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, conv: ConvMaker) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, stride)
        self.act1 = nn.ReLU(inplace=True)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 1)
        self.act2 = nn.ReLU(inplace=True)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def first(self, x: Tensor) -> Tensor:
        """The first convolution with what follows it, without a shortcut."""
        return self.bn1(self.act1(self.conv1(x)))

    def second(self, x: Tensor) -> Tensor:
        """The second convolution with what follows it, without a shortcut."""
        return self.bn2(self.act2(self.conv2(x)))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """See the class."""


class PlainBlock(Block):
    """One shortcut around both convolutions."""

    def __init__(self, *shape: int, conv: ConvMaker, shortcut: Shortcut) -> None:
        super().__init__(*shape, conv=conv)
        self.shortcut = shortcut(*shape)

    def forward(self, x: Tensor) -> Tensor:
        """See `Block`."""
        return self.second(self.first(x)) + self.shortcut(x)


class BiRealBlock(Block):
    """A shortcut around each convolution (Liu et al., Bi-Real Net, ECCV 2018)."""

    def __init__(self, *shape: int, conv: ConvMaker, shortcut: Shortcut) -> None:
        super().__init__(*shape, conv=conv)
        # Another name than in the plain block, because official checkpoints say so.
        self.downsample = shortcut(*shape)

    def forward(self, x: Tensor) -> Tensor:
        """See `Block`."""
        x = self.first(x) + self.downsample(x)
        return self.second(x) + x


class BinaryResNet(Backbone):
    """Stem, stages `layer1..n` that halve the resolution from the second on, mean, batch norm, classifier.

    The defaults are those for ImageNet.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage; the stem has those of the first.
        conv: makes the 3x3 convolutions of the blocks.
        block: `PlainBlock` or `BiRealBlock`.
        shortcut: makes the path around a block.
        init: applied to every module once.
        stem: kernel size and stride of the full-precision first convolution.
        stem_pool: whether a 3x3 max pool of stride 2 follows it.
        head: child name of the classifier in official checkpoints.
        num_classes: 0 for none.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        conv: ConvMaker,
        block: Callable[..., Block] = BiRealBlock,
        shortcut: Shortcut = projection_shortcut,
        init: Callable[[nn.Module], None] = he_convolutions,
        stem: tuple[int, int] = (7, 2),
        stem_pool: bool = True,
        head: str = "fc",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate)
        kernel, reduction = stem
        channels = widths[0]
        self.conv1 = nn.Conv2d(in_chans, channels, kernel, stride=reduction, padding=kernel // 2, bias=False)
        self.act1 = nn.ReLU(inplace=True)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else nn.Identity()
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": "bn1"})

        reduction *= 2 if stem_pool else 1
        self.stages = tuple(f"layer{i + 1}" for i in range(len(depths)))
        for stage, depth, width in zip(self.stages, depths, widths, strict=True):
            stride = 1 if stage == "layer1" else 2
            shapes = [(channels, width, stride)] + [(width, width, 1)] * (depth - 1)
            blocks = (block(*shape, conv=conv, shortcut=shortcut) for shape in shapes)
            setattr(self, stage, nn.Sequential(*blocks))
            channels, reduction = width, reduction * stride
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": stage})

        self.bn2 = nn.BatchNorm1d(channels)
        self.add_head(head, num_features=channels, head_hidden_size=channels)
        self.apply(init)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to features (B, num_features, H', W'), H' = ceil(H / last reduction)."""
        x = self.maxpool(self.bn1(self.act1(self.conv1(x))))
        for stage in self.stages:
            for block in getattr(self, stage):
                x = recompute(block, x, owner=block) if self.grad_checkpointing else block(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Mean over pixels, then batch norm: (B, num_features, H', W') to (B, num_features)."""
        # The same mean; in large sums the two ways to compute it differ in their last digits.
        means = F.avg_pool2d(x, x.shape[2:]).flatten(1) if self.numerics == "reference" else x.mean((2, 3))
        return self.bn2(means)


_CIFAR: dict[str, Any] = {"stem": (3, 1), "stem_pool": False, "head": "linear"}
RESNET20: dict[str, Any] = _CIFAR | {
    "depths": (3, 3, 3),
    "widths": (16, 32, 64),
    "shortcut": padding_shortcut,
    "init": he_convolutions_and_linear,
}
RESNET18_CIFAR: dict[str, Any] = _CIFAR | {
    "depths": (2, 2, 2, 2),
    "block": PlainBlock,
    "init": pytorch_default,
}

_imagenet_cfg = default_cfg(size=224, num_classes=1000, first_conv="conv1", classifier="fc")
_cifar_cfg = default_cfg(size=32, num_classes=10, first_conv="conv1", classifier="linear")
default_cfgs = generate_default_cfgs(
    {
        "resnet18_1w1a": _imagenet_cfg,
        "resnet34_1w1a": _imagenet_cfg,
        "resnet20_1w1a": _cifar_cfg,
        "resnet20_bireal_1w1a": _cifar_cfg,
        "resnet18_cifar_1w1a": _cifar_cfg,
    }
)


@register_model
def resnet18_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-18 for ImageNet with a shortcut around every convolution: 16 binary convolutions."""
    return build(BinaryResNet, "resnet18_1w1a", pretrained, 5, depths=(2, 2, 2, 2), **kwargs)


@register_model
def resnet34_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-34 for ImageNet with a shortcut around every convolution: 32 binary convolutions."""
    return build(BinaryResNet, "resnet34_1w1a", pretrained, 5, depths=(3, 4, 6, 3), **kwargs)


@register_model
def resnet20_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-20 for CIFAR: 18 binary convolutions, a shortcut around every two."""
    return build(BinaryResNet, "resnet20_1w1a", pretrained, 4, block=PlainBlock, **RESNET20, **kwargs)


@register_model
def resnet20_bireal_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-20 for CIFAR with a shortcut around every convolution."""
    return build(BinaryResNet, "resnet20_bireal_1w1a", pretrained, 4, **RESNET20, **kwargs)


@register_model
def resnet18_cifar_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-18 for CIFAR (official name there: resnet18_1w1a), a shortcut around every two convolutions."""
    return build(BinaryResNet, "resnet18_cifar_1w1a", pretrained, 5, **RESNET18_CIFAR, **kwargs)
