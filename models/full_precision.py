"""The full-precision networks that the official code trains beside its binary ones on CIFAR-10.

They are not the binary networks with 32 bits: batch norm comes before ReLU, and a residual block ends in a ReLU after
its sum. The stem and the head are those of the binary networks. (The official full-precision ResNet-18 for ImageNet is
`resnet18_1w1a` with 32 bits on both sides.) Names of tensors and initialisation are those of
github.com/DravenALG/ReSTE. Registered with timm, but not binary: they are no part of `models.MODELS`.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from models.entry import default_cfg
from models.parts import Shortcut
from models.resnet import RESNET18_CIFAR, RESNET20, BinaryResNet
from models.vgg import VGG_SMALL, BinaryVGG


def conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A plain 3x3 convolution with zero padding 1 and no bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """The block of He et al. 2015: conv -> batch norm -> ReLU -> conv -> batch norm, plus shortcut, ReLU.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, conv: Any, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


_cifar_cfg = default_cfg(size=32, num_classes=10, first_conv="conv1", classifier="linear")
_vgg_cfg = default_cfg(size=32, num_classes=10, first_conv="conv0", classifier="fc")
default_cfgs = generate_default_cfgs({"resnet20": _cifar_cfg, "resnet18_cifar": _cifar_cfg, "vgg_small": _vgg_cfg})


def _build(family: Any, variant: str, pretrained: bool, taps: int, **kwargs: Any) -> Any:
    def official(**options: Any) -> Any:
        model = family(**options)
        model.numerics = "reference"
        return model

    features = {"out_indices": tuple(range(taps))}
    return build_model_with_cfg(official, variant, pretrained, feature_cfg=features, conv=conv3x3, **kwargs)


@register_model
def resnet20(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-20 for CIFAR in full precision."""
    return _build(BinaryResNet, "resnet20", pretrained, 4, **RESNET20 | {"block": BasicBlock}, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-18 for CIFAR in full precision (official name there: resnet18)."""
    return _build(BinaryResNet, "resnet18_cifar", pretrained, 5, **RESNET18_CIFAR | {"block": BasicBlock}, **kwargs)


@register_model
def vgg_small(pretrained: bool = False, **kwargs: Any) -> BinaryVGG:
    """VGG-small for CIFAR in full precision, as the official code describes it; there it cannot be constructed."""
    return _build(BinaryVGG, "vgg_small", pretrained, 4, norm_first=True, **VGG_SMALL, **kwargs)
